"""A cache strategy: parts chosen by configuration, and what the house asks of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from kvbench.cache.codecs.base import Codec
from kvbench.cache.codecs.dense import Dense
from kvbench.cache.codecs.kernel import chosen_kernel
from kvbench.cache.pair import Pair
from kvbench.cache.placement.rooms import Placed, placed
from kvbench.cache.plan import LayerPlan, padding_bytes
from kvbench.cache.protocols import Evicted, Handing, Layout, Reader, Scorer, Selector
from kvbench.strategies.budget.base import Budget, WatchingBudget
from kvbench.strategies.budget.heads import HeadBudget
from kvbench.strategies.evicted.drop import Drop
from kvbench.strategies.evicted.tiers import Tiers
from kvbench.strategies.layout.paged import Paged
from kvbench.strategies.legality import (
    check_composition,
    refused_to_begin_later,
    refused_to_replay,
    refused_to_share,
    refused_when_spread,
    refused_with_contexts,
    refused_with_donors,
    refused_with_latents,
    refused_with_states,
    refused_without_entries,
)
from kvbench.strategies.placement.base import Placing
from kvbench.strategies.placement.fitting import allocated_bytes, placed_as
from kvbench.strategies.position.policies import Position
from kvbench.strategies.selection.recency import Recency
from kvbench.strategies.selection.selector import Protected
from kvbench.strategies.transform.base import Transform
from kvbench.strategies.transform.crossing import Crossed
from kvbench.strategies.transform.matched import Matched
from kvbench.strategies.trigger import Trigger
from kvbench.types import Fidelity, ModelView, RunShape, Saving

if TYPE_CHECKING:
    import torch
    from torch import nn

    from kvbench.cache.kv_cache import KVCache
    from kvbench.cache.pages import Paging


@dataclass(frozen=True, kw_only=True)
class CacheStrategy:
    """A method made of parts.

    Args:
        trigger: when entries leave.
        scorer: how much an entry matters.
        budget: how many entries stay.
        selector: which ones those are.
        evicted: what becomes of the others.
        position: at which position kept entries are read.
        codec: how an entry is written.
        reader: what of the entries a decode step reads.
        layout: whether layers keep entries together.
        placement: where entries lie between steps.
        transform: what is changed in the network.
    """

    trigger: Trigger
    scorer: Scorer
    budget: Budget
    selector: Selector
    evicted: Evicted
    position: Position
    codec: Codec
    reader: Reader
    layout: Layout
    placement: Placing
    transform: Transform

    def __post_init__(self) -> None:
        """Refuse compositions that make no sense, whatever the model."""
        check_composition(self)

    # -- what it does -------------------------------------------------------------------------------------------

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return the model the strategy runs on; the model itself where the network is not changed.

        Raises:
            ValueError: if the network cannot be changed so, as `unsupported` says.
        """
        return self.transform.prepare(model)

    def build(self, view: ModelView, run: RunShape) -> KVCache:
        """Return an empty cache.

        Args:
            view: of the prepared model, here and in what else is asked.
            run: how long the rows of the batch are.

        Raises:
            ValueError: if the composition is not supported for this model and these lengths.
        """
        reason = self.unsupported(view, run)
        if reason is not None:
            raise ValueError(reason)
        from kvbench.cache.kv_cache import KVCache  # here, because configurations are checked without transformers

        return KVCache(self.plans(view, run), view, run)

    @contextmanager
    def attach(self, model: nn.Module, cache: KVCache) -> Iterator[None]:
        """Return a context in which the model has the hooks the strategy needs while it reads a prompt."""
        with ExitStack() as hooks:
            hooks.enter_context(self.placement.watch(model, cache))
            if isinstance(self.budget, WatchingBudget) and any(layer.plan.compresses for layer in cache.layers):
                hooks.enter_context(self.budget.watch(model, cache))
            yield

    # -- what it says -------------------------------------------------------------------------------------------

    def plans(self, view: ModelView, run: RunShape) -> list[LayerPlan]:
        """Return what each layer is to do; a sliding layer keeps its window and nothing else."""
        evicted = copy.copy(self.evicted)  # threads that it starts are one cache's
        free = [self._plan(view, index, (1,) * run.batch_size, evicted) for index in range(len(view.layers))]
        budgets = self.budget.entries(free, view, run)
        plans = [
            self._plan(view, index, budget, evicted)
            if view.layers[index].window == 0
            else self._window_plan(view, index, run)
            for index, budget in enumerate(budgets)
        ]
        lower = set(self.layout.lower_layers(len(plans)))
        pairs = {index: Pair(layout=self.layout, is_upper=False) for index in lower}
        pairs |= {index + 1: Pair(layout=self.layout, is_upper=True) for index in lower}
        pagings = self.reader.pagings(view, run)
        heads = self.budget.counts(budgets, free, view, run) if isinstance(self.budget, HeadBudget) else ()
        counts = dict(enumerate(heads))
        plans = [
            replace(
                plan,
                paging=_paging_of(plan, pagings[plan.index]),
                pair=pairs.get(plan.index),
                counts=counts.get(plan.index),
            )
            for plan in plans
        ]
        return placed_as(plans, self.placement.of_run(view, run, plans))

    def _plan(self, view: ModelView, index: int, budget: tuple[int, ...] | None, evicted: Evicted) -> LayerPlan:
        return LayerPlan(
            index=index,
            shape=view.layers[index],
            codec=self.codec.of_layer(view, index),
            scorer=self.scorer,
            selector=self.selector.of_layer(index),
            budget=budget,
            evicted=evicted,
            sharer=self.budget.sharer if budget is not None else None,
            period=self.trigger.period,
            by_rank=self.position.by_rank and budget is not None,
            rerotates=self.position.rerotates and budget is not None,
            clamps=self.position.clamps and budget is not None,
            in_pieces=self.trigger.packs_pieces,
            pages=self._pages,
        )

    def _window_plan(self, view: ModelView, index: int, run: RunShape) -> LayerPlan:
        return LayerPlan(
            index=index,
            shape=view.layers[index],
            codec=self.codec.of_layer(view, index) if self.codec.writes_each_token_alone else Dense(),  # one by one
            scorer=Recency(),
            selector=Protected(num_sink=0, num_recent=0, recent_share=0.0),
            budget=(view.layers[index].window - 1,) * run.batch_size,
            evicted=Drop(),
            period=1,
            by_rank=False,
            pages=self._pages,
        )

    @property
    def _pages(self) -> Paged | None:
        return self.layout if isinstance(self.layout, Paged) else None

    @property
    def page_tokens(self) -> int:
        """Slots of a page of a strategy that `cannot_share` has not refused."""
        assert self._pages is not None
        return self._pages.page_tokens

    def allocated_bytes(self, view: ModelView, run: RunShape) -> int:
        """Return the bytes held on the device once the prompt is read: every storage, metadata included."""
        again = padding_bytes(run) * (len(view.devices) - 1)  # each device is told of the padding
        return again + allocated_bytes(self.plans(view, run), run, view.dtype)

    def bytes_elsewhere(self, view: ModelView, run: RunShape) -> Placed:
        """Return the bytes that lie in the host's memory and on disk, and how many more, or fewer, on the device."""
        return placed(self.plans(view, run), run, view.dtype)

    def used_bytes(self, view: ModelView, run: RunShape, tokens_seen: int) -> int:
        """Return the bytes of occupied slots after so many columns, metadata included."""
        return sum(plan.used_bytes(run, view.dtype, tokens_seen) for plan in self.plans(view, run))

    def unsupported(self, view: ModelView, run: RunShape) -> str | None:
        """Return why this model or these lengths cannot be served, or None."""
        reason = refused_to_replay(self, view, run) if view.replays else None
        if reason is not None:
            return reason
        if view.is_recurrent:
            return refused_with_states(self)
        reason = self.budget.unsupported(view) if isinstance(self.budget, HeadBudget) else None
        reason = reason or self.transform.unsupported(view) or self.codec.unsupported(view)
        if view.places:
            reason = reason or refused_when_spread(self)
        if any(layer.donor is not None for layer in view.layers):
            reason = reason or refused_with_donors(self)
        if view.keeps_context:
            reason = reason or refused_with_contexts(self, view)
        if view.keeps_nothing:
            reason = reason or refused_without_entries(self)
        if any(layer.values_are_keys for layer in view.layers):
            reason = reason or refused_with_latents(self, view)
        reason = reason or self.placement.lacks(view, run)
        if reason is not None:
            return reason
        plans = self.plans(view, run)
        reason = self.position.unsupported(plans) or self.layout.unsupported(plans, view)
        reason = reason or self.placement.unsupported(plans, view, run)
        if reason is not None:
            return reason
        repeater = next((plan.repeater for plan in plans if plan.repeater is not None), None)
        reason = None if repeater is None else repeater.cannot_repeat(view, run)
        if reason is not None:
            return reason
        for plan in plans:
            if plan.budget is None or plan.shape.window > 0:
                continue
            if view.replays and (reason := refused_to_begin_later(plan, run)) is not None:
                return reason
            if isinstance(plan.handing, Tiers) and plan.paging is None:
                return (
                    f"layer {plan.index} reads everything, and what it lets go is read in pages only; take it out of "
                    f"strategy.reader.skip_layers, or set strategy.budget.skip_layers as well"
                )
            for length, budget in zip(run.prompt_lengths, plan.budget, strict=True):
                reserved = plan.num_reserved
                least = max(1, self.selector.num_sink + self.selector.recent(budget - reserved)) + reserved
                if budget < least and (self.trigger.period > 0 or budget < length):
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

    def pool_bytes(self, view: ModelView, pages: int) -> int:
        """Return the bytes of a pool of so many pages that sequences share."""
        plans = self.plans(view, RunShape(prompt_lengths=(1,), new_tokens=1))
        return sum(plan.pool_bytes(pages, view.dtype) for plan in plans)

    def cannot_share(self, view: ModelView) -> str | None:
        """Return why sequences of this model cannot share entries, nor a pool of pages, or None."""
        return refused_to_share(self, view)

    def cannot_change(self, view: ModelView) -> str | None:
        """Return why the network of a model cannot be changed so, or None."""
        reason = refused_with_states(self) if view.is_recurrent else self.transform.unsupported(view)
        return reason or (refused_when_spread(self) if view.places else None)

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return what reads entries of a model with this dtype on this device; None for plain torch."""
        found = self.codec.kernel_on(device, dtype)
        if found is None and isinstance(self.layout, Paged):
            return chosen_kernel(self.layout.kernel, device, dtype)
        return found

    @property
    def saving(self) -> Saving:
        """What kind of saving the method makes."""
        if not self.codec.is_exact:
            return "packed"
        if self.budget.limits and isinstance(self.evicted, Handing):
            return "offloaded"
        if self.budget.limits or self.layout.merges or self.transform.changes_heads or self._is_trained:
            return "physical"
        return "offloaded" if self.placement.is_elsewhere else "none"

    @property
    def fidelity(self) -> Fidelity:
        """How the outputs relate to the full cache's."""
        if self._is_trained:
            return "trained"
        keeps_all = not self.budget.limits and not self.layout.merges
        is_exact = keeps_all and self.reader.reads_all and self.codec.is_exact and self.transform.is_exact
        return "exact" if is_exact else "lossy_training_free"

    @property
    def _is_trained(self) -> bool:
        return isinstance(self.transform, Matched | Crossed)

    @property
    def data_dependent(self) -> bool:
        """Whether the bytes stored depend on the data; closed forms then give the most there can be."""
        if not self.budget.limits:
            return self.codec.data_dependent
        shares = self.budget.sharer is not None and not self.codec.writes_each_token_alone  # groups fill unevenly
        divides = self.placement.is_elsewhere and self.budget.sharer is not None  # unequal parts are rounded apart
        return self.codec.data_dependent or self.budget.data_dependent or shares or divides

    @property
    def statistic(self) -> Literal["median", "mean"]:
        """How the steps of a block are summed up: work that is done now and then only shows in a mean."""
        return "mean" if self.period > 1 else "median"

    @property
    def period(self) -> int:
        """Decode steps after which the work of a step repeats: entries leave, or are packed, several at a time."""
        return max(1, self.codec.flush_tokens, self.trigger.period if self.budget.limits else 0)

    @property
    def forgets(self) -> bool:
        """Whether entries leave for good: neither kept elsewhere nor merged into those that stay."""
        return self.budget.limits and not self.evicted.merges and not isinstance(self.evicted, Handing)

    @property
    def keeps_budget(self) -> bool:
        """Whether the budget also holds while decoding."""
        return self.trigger.period > 0 or not self.budget.limits


def _paging_of(plan: LayerPlan, paging: Paging | None) -> Paging | None:
    """Return how the entries of a layer are read, of which perhaps none leave."""
    return paging if paging is None or paging.reads_slots or plan.handing is not None else None
