"""Entries that leave go to tiers of memory, in pages, and are read from there when a query needs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from kvbench.cache.far import Far
from kvbench.cache.far_bytes import FarBytes, Levels
from kvbench.cache.placement.rooms import Placed
from kvbench.cache.plan import LayerPlan
from kvbench.strategies.evicted.drop import Drop
from kvbench.types import RunShape

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Tiers(Drop):
    """Pages of what leaves lie in the host's memory or on disk; those a step reads come to the device on a miss.

    Which pages a step reads says strategy/reader. A page is written down once, when it is full, and is in no level
    changed after that.

    Args:
        first: entries that leave first and stay on the device, read by every step.
        at_hand: pages that stay on the device, times those a step reads; at least 1.
        host: share of the pages that lie in the host's memory; below 1 all lie on disk, and the host's memory holds
            those that were read lately.
        policy: which page makes room for another: that read longest ago (lru), that which came first (fifo), or that
            read least often while it was there (lfu).
        folder: where files lie, "" for the system's folder of temporary files; they have no name and end with the
            process.
        rank: coordinates by which all keys of a token stay on the device, from the prompt's end on, so that pages hold
            values only; 0 for pages of both.
    """

    first: int
    at_hand: float
    host: float
    policy: Literal["lru", "fifo", "lfu"]
    folder: str
    rank: int

    def __post_init__(self) -> None:
        """Refuse sizes that mean nothing."""
        if self.first < 0:
            raise ValueError(f"strategy.evicted.first must be 0 or more entries; got {self.first}.")
        if self.at_hand < 1:
            raise ValueError(
                f"strategy.evicted.at_hand must be at least 1, as a step's pages lie on the device together; got "
                f"{self.at_hand}."
            )
        if not 0 <= self.host <= 1:
            raise ValueError(f"strategy.evicted.host must be a share between 0 and 1; got {self.host}.")
        if self.policy not in ("lru", "fifo", "lfu"):
            raise ValueError(f"strategy.evicted.policy must be lru, fifo or lfu; got {self.policy!r}.")
        if self.rank < 0:
            raise ValueError(f"strategy.evicted.rank must be 0, for keys in pages, or more; got {self.rank}.")

    @property
    def _levels(self) -> Levels:
        return Levels(
            first=self.first,
            at_hand=self.at_hand,
            host=self.host,
            policy=self.policy,
            folder=self.folder,
            rank=self.rank,
        )

    def open(self, plan: LayerPlan, run: RunShape, padding: Tensor | None, key: Tensor) -> Far:
        """Return the pages of the rows and heads of a plan."""
        return Far(plan, run, key, self._levels)

    def placed(self, plan: LayerPlan, run: RunShape, dtype: torch.dtype) -> Placed:
        """Return the bytes that are held where once the prompt is read."""
        return FarBytes(plan, run, dtype, self._levels).placed()

    def used_bytes(self, plan: LayerPlan, run: RunShape, dtype: torch.dtype, tokens_seen: int) -> int:
        """Return the bytes in use on the device after so many columns."""
        return FarBytes(plan, run, dtype, self._levels).used_after(tokens_seen)
