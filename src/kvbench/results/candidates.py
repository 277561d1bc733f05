"""What somebody can afford, and what was measured of the strategies that may be it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

from kvbench.results.cells import Row

Prefer = Literal["speed", "memory", "loss"]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What somebody can afford.

    Args:
        memory: bytes for the weights, the cache and all else that a run takes at its peak.
        loss: nats per token above the full cache's.
        context: tokens of the prompt.
        batch: prompts at once.
        slowdown: the most that a decode step may take of the full cache's; infinite for any.
        query_aware: whether the question may be known when the cache is compressed.
        prefer: what is best of that which can be afforded.
    """

    memory: float
    loss: float
    context: int
    batch: int
    slowdown: float
    query_aware: bool
    prefer: Prefer

    def __post_init__(self) -> None:
        """Refuse what cannot be held against a number."""
        if not 0 <= self.loss < inf:
            raise ValueError(f"--max-loss must be nats per token from 0, such as 0.02; got {self.loss}.")
        if not self.slowdown > 0:
            raise ValueError(f"--max-slowdown must be a ratio above 0, such as 1.1; got {self.slowdown}.")
        if self.prefer not in get_args(Prefer):
            raise ValueError(f"--prefer must be one of {', '.join(get_args(Prefer))}; got {self.prefer!r}.")

    @property
    def shape(self) -> tuple[int, int]:
        """Tokens of a prompt, and prompts."""
        return self.context, self.batch


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A strategy with its settings, and what was measured of it.

    Args:
        name: for people.
        row: that its bytes come from.
        needed_bytes: weights, cache and the rest of the peak, at the length that is wanted.
        kv_bytes: of the cache, at that length.
        is_modelled: whether that length was not measured.
        loss: nats per token above the full cache's: the upper end of the interval, where there is one.
        has_interval: whether there is one.
        loss_tokens: the longest context it was measured on.
        timed: row whose times count; None where nothing was timed beside the full cache.
        beyond: limits that it does not keep to, in words.
        remarks: what else was measured that speaks against it.
    """

    name: str
    row: Row
    needed_bytes: float
    kv_bytes: float
    is_modelled: bool
    loss: float
    has_interval: bool
    loss_tokens: int
    timed: Row | None
    beyond: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def tells_time(self) -> bool:
        """Whether its time says anything of KV caches."""
        timed = self.timed
        return timed is not None and timed["regime"] != "overhead_bound" and timed["ratio_high"] is not None

    @property
    def time(self) -> float:
        """A decode step over the full cache's; 1 where no difference was shown."""
        if self.timed is None or not self.tells_time or self.timed["verdict"] not in ("faster", "slower"):
            return 1.0
        return float(self.timed["ratio"])


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What can be afforded, the best first, what cannot, and what nothing can be said of.

    Args:
        fitting: keeps to all limits.
        others: does not.
        left_out: names of rows that do not count, by the reason.
    """

    fitting: Sequence[Candidate]
    others: Sequence[Candidate]
    left_out: Mapping[str, Sequence[str]]
