"""How many entries each layer keeps of each row."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

from kvbench.cache.plan import GROW_LEAST, GROW_SHARE, LayerPlan, padding_bytes
from kvbench.cache.protocols import Evicted, Scorer, Selector, Sharer
from kvbench.strategies.budget.rounding import largest
from kvbench.types import ModelView, RunShape

if TYPE_CHECKING:
    from torch import nn

    from kvbench.cache.kv_cache import KVCache


class Budget(Protocol):
    """How many entries stay."""

    limits: ClassVar[bool]
    data_dependent: ClassVar[bool]  # whether how much is kept depends on the data

    @property
    def sharer(self) -> Sharer | None:
        """What decides how heads and layers differ once they are scored, or None where that is known."""

    def entries(self, plans: Sequence[LayerPlan], view: ModelView, run: RunShape) -> list[tuple[int, ...] | None]:
        """Return per layer the entries kept of each row, or None where all are.

        Args:
            plans: one per layer, whose slots and fixed parts tell what an entry costs.
            view: of the model.
            run: how long the rows are.
        """


@runtime_checkable
class ChoosyBudget(Protocol):
    """A budget that does not go with every other part."""

    def refusal(self, scorer: Scorer, selector: Selector, evicted: Evicted, *, by_rank: bool) -> str | None:
        """Return why it cannot be put together with these parts, or None.

        Args:
            scorer: how entries are ranked.
            selector: which entries stay.
            evicted: what becomes of the others.
            by_rank: whether kept entries move along.
        """


@runtime_checkable
class WatchingBudget(Protocol):
    """A budget that has to see more of the model than its attention."""

    def watch(self, model: nn.Module, cache: KVCache) -> AbstractContextManager[None]:
        """Return a context in which the layers of a cache are told what it needs while a prompt is read."""


@dataclass(frozen=True, kw_only=True)
class Everything:
    """Nothing leaves."""

    limits: ClassVar[bool] = False
    data_dependent: ClassVar[bool] = False
    sharer: ClassVar[None] = None

    def entries(self, plans: Sequence[LayerPlan], view: ModelView, run: RunShape) -> list[tuple[int, ...] | None]:
        """Return None for every layer."""
        return [None] * len(plans)


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """The same number of entries in every layer.

    Args:
        amount: how much is kept, protected entries included: a fraction of the row's prompt (unit "ratio"), entries
            per layer and KV head ("tokens"), or bytes of the whole batch's cache once the prompt is read, metadata
            and the slot of the newest entry included, and layers that keep everything not counted ("bytes").
        unit: what `amount` counts.
        skip_layers: layers that keep everything.
    """

    limits: ClassVar[bool] = True
    data_dependent: ClassVar[bool] = False

    amount: float
    unit: Literal["ratio", "tokens", "bytes"]
    skip_layers: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse amounts that mean nothing."""
        if self.unit == "ratio" and not 0 < self.amount <= 1:
            raise ValueError(
                f"strategy.budget.amount with strategy.budget.unit=ratio is the fraction kept, above 0 and at most 1; "
                f"got {self.amount}. For a number of entries set strategy.budget.unit=tokens."
            )
        if self.unit in ("tokens", "bytes") and (self.amount < 1 or self.amount != int(self.amount)):
            raise ValueError(
                f"strategy.budget.amount with strategy.budget.unit={self.unit} must be a whole number of at least 1; "
                f"got {self.amount}. For a fraction of the prompt set strategy.budget.unit=ratio."
            )
        if self.unit not in ("ratio", "tokens", "bytes"):
            raise ValueError(f"strategy.budget.unit must be ratio, tokens or bytes; got {self.unit!r}.")

    @property
    def sharer(self) -> Sharer | None:
        """Nothing: all heads of all layers keep the same."""
        return None

    def entries(self, plans: Sequence[LayerPlan], view: ModelView, run: RunShape) -> list[tuple[int, ...] | None]:
        """Return the same entries for every layer that is not skipped."""
        outside = [index for index in self.skip_layers if not 0 <= index < len(plans)]
        if outside:
            raise ValueError(f"strategy.budget.skip_layers={outside}: the model has layers 0 to {len(plans) - 1}.")
        kept = self._of_rows(plans, view, run)
        return [None if index in self.skip_layers else kept for index in range(len(plans))]

    def _of_rows(self, plans: Sequence[LayerPlan], view: ModelView, run: RunShape) -> tuple[int, ...]:
        if self.unit == "ratio":
            share = Fraction(str(self.amount))
            return tuple(max(1, int(share * length)) for length in run.prompt_lengths)
        if self.unit == "tokens":
            return (int(self.amount),) * run.batch_size
        chosen = [p for p in plans if p.index not in self.skip_layers and p.shape.window == 0]
        if not chosen:  # nothing is limited
            return (1,) * run.batch_size
        fixed = padding_bytes(run) + sum(plan.fixed_bytes(run, view.dtype) for plan in chosen)
        free = (int(self.amount) - fixed) // run.batch_size

        def kept(slots: int) -> int:
            if chosen[0].period > 0:
                return max(0, slots - chosen[0].period)
            if run.new_tokens is None:
                return max(0, min(slots - GROW_LEAST, slots * GROW_SHARE // (GROW_SHARE + 1)))
            return max(0, slots - run.new_tokens)

        def fits(slots: int) -> bool:
            told = (replace(plan, budget=(kept(slots),) * run.batch_size) for plan in chosen)
            return sum(plan.room_bytes(slots, run, view.dtype) for plan in told) <= free

        return (kept(largest(fits, free)),) * run.batch_size
