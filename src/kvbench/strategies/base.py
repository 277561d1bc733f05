"""A cache strategy: parts chosen by configuration, and what the house asks of them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvbench.cache.codecs.dense import Codec
from kvbench.cache.plan import LayerPlan, Scorer, Selector, padding_bytes
from kvbench.strategies.budget.base import Budget
from kvbench.strategies.position.policies import Position
from kvbench.strategies.selection.recency import Recency
from kvbench.strategies.selection.selector import Protected
from kvbench.strategies.trigger import Trigger
from kvbench.types import Fidelity, ModelView, RunShape, Saving

if TYPE_CHECKING:
    from torch import nn

    from kvbench.cache.kv_cache import KVCache


@dataclass(frozen=True, kw_only=True)
class CacheStrategy:
    """A method made of parts.

    Args:
        trigger: when entries leave.
        scorer: how much an entry matters.
        budget: how many entries stay.
        selector: which ones those are.
        position: at which position kept entries are read.
        codec: how an entry is written.
    """

    trigger: Trigger
    scorer: Scorer
    budget: Budget
    selector: Selector
    position: Position
    codec: Codec

    def __post_init__(self) -> None:
        """Refuse compositions that make no sense, whatever the model."""
        if self.position.by_rank and self.budget.limits and not self.scorer.is_recency:
            raise ValueError(
                "strategy/position=rank needs kept entries to be the sinks and one recent run; "
                "use strategy/scorer=recency or strategy/position=original."
            )
        if self.position.by_rank and self.budget.limits and not self.trigger.every_step:
            raise ValueError(
                "strategy/position=rank needs the recent run to move on with every token; use "
                "strategy/trigger=every_step or strategy/position=original."
            )
        if self.trigger.every_step and self.budget.limits and not self.codec.writes_each_token_alone:
            raise ValueError(
                "strategy/trigger=every_step overwrites single entries, which this codec cannot; "
                "use strategy/trigger=prefill_end or strategy/codec=dense."
            )

    # -- what it does -------------------------------------------------------------------------------------------

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return the model the strategy runs on; the model itself where the network is not changed."""
        return model

    def build(self, view: ModelView, run: RunShape) -> KVCache:
        """Return an empty cache.

        Raises:
            ValueError: if the composition is not supported for this model and these lengths.
        """
        reason = self.unsupported(view, run)
        if reason is not None:
            raise ValueError(reason)
        from kvbench.cache.kv_cache import KVCache  # here, because configurations are checked without transformers

        return KVCache(self.plans(view, run), view, run)

    def attach(self, model: nn.Module, cache: KVCache) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the model has the hooks the strategy needs; none here."""
        return contextlib.nullcontext()

    # -- what it says -------------------------------------------------------------------------------------------

    def plans(self, view: ModelView, run: RunShape) -> list[LayerPlan]:
        """Return what each layer is to do; a sliding layer keeps its window and nothing else."""
        free = [self._plan(view, index, (1,) * run.batch_size) for index in range(len(view.layers))]
        budgets = self.budget.entries(free, view, run)
        return [
            self._plan(view, index, budget) if view.layers[index].window == 0 else self._window_plan(view, index, run)
            for index, budget in enumerate(budgets)
        ]

    def _plan(self, view: ModelView, index: int, budget: tuple[int, ...] | None) -> LayerPlan:
        return LayerPlan(
            index=index,
            shape=view.layers[index],
            codec=self.codec,
            scorer=self.scorer,
            selector=self.selector,
            budget=budget,
            every_step=self.trigger.every_step,
            by_rank=self.position.by_rank and budget is not None,
        )

    def _window_plan(self, view: ModelView, index: int, run: RunShape) -> LayerPlan:
        return LayerPlan(
            index=index,
            shape=view.layers[index],
            codec=self.codec,
            scorer=Recency(),
            selector=Protected(num_sink=0, num_recent=0, recent_share=0.0),
            budget=(view.layers[index].window - 1,) * run.batch_size,
            every_step=True,
            by_rank=False,
        )

    def allocated_bytes(self, view: ModelView, run: RunShape) -> int:
        """Return the bytes held once the prompt is read: every storage, metadata included."""
        return padding_bytes(run) + sum(
            run.batch_size * plan.capacity(run) * plan.slot_bytes(run, view.dtype) + plan.fixed_bytes(run, view.dtype)
            for plan in self.plans(view, run)
        )

    def used_bytes(self, view: ModelView, run: RunShape, tokens_seen: int) -> int:
        """Return the bytes of occupied slots after so many columns, metadata included."""
        return sum(
            sum(plan.held(run, tokens_seen)) * plan.slot_bytes(run, view.dtype) for plan in self.plans(view, run)
        )

    def unsupported(self, view: ModelView, run: RunShape) -> str | None:
        """Return why this model or these lengths cannot be served, or None."""
        for plan in self.plans(view, run):
            if plan.budget is None or plan.shape.window > 0:
                continue
            for length, budget in zip(run.prompt_lengths, plan.budget, strict=True):
                least = max(1, self.selector.num_sink + self.selector.recent(budget))
                if budget < least and (self.trigger.every_step or budget < length):
                    return (
                        f"a budget of {budget} entries for a prompt of {length} tokens is below the {least} "
                        f"protected ones; raise strategy.budget.amount, or lower strategy.selector.num_sink or "
                        f"strategy.selector.num_recent"
                    )
            if plan.num_moving > min(run.prompt_lengths):
                return (
                    f"strategy/position=rank needs prompts of at least strategy.selector.num_sink={plan.num_moving} "
                    f"tokens; the shortest has {min(run.prompt_lengths)}"
                )
        return None

    @property
    def saving(self) -> Saving:
        """What kind of saving the method makes."""
        return "physical" if self.budget.limits else "none"

    @property
    def fidelity(self) -> Fidelity:
        """How the outputs relate to the full cache's."""
        return "lossy_training_free" if self.budget.limits else "exact"

    @property
    def keeps_budget(self) -> bool:
        """Whether the budget also holds while decoding."""
        return self.trigger.every_step or not self.budget.limits


@dataclass(frozen=True, kw_only=True)
class BlackBox(CacheStrategy):
    """The name of an engine that brings its own cache; the parts say what that cache does: keep everything."""
