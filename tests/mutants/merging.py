"""Ways of merging that each get one thing wrong."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.plan import LayerPlan
from kvbench.cache.slots import Slots
from kvbench.cache.store import take
from kvbench.cache.views import Leaving, Merged, Observation, Scored
from kvbench.strategies.budget import variance
from kvbench.strategies.budget.variance import ByVariance
from kvbench.strategies.evicted import nearest
from kvbench.strategies.evicted.following import FollowingMerge
from kvbench.strategies.evicted.nearest import NearestMerge
from kvbench.strategies.evicted.residual import Residual
from kvbench.strategies.evicted.runs import RunMerge
from kvbench.strategies.evicted.summary import Summary
from kvbench.strategies.selection.call_attention import CallAttention
from kvbench.strategies.selection.selector import Protected
from kvbench.strategies.selection.truncation import Truncation
from kvbench.types import ModelView, RunShape
from tests.mutants.core_mutant import Mutant
from tests.support import layer_variance, merging, merging_cases

entry, gone, victims = Summary._entry, Leaving.gone, Protected.victims
most_similar_slot, means, joins = nearest._most_similar_slot, Residual._entries, Residual._nearest
spread_at_prompt_end, chosen = FollowingMerge.at_prompt_end, RunMerge._pivots
threshold = NearestMerge._threshold
by_variance_entries, variance_of = ByVariance.entries, variance._variance


def loops(name: str, *overrides: str) -> partial[None]:
    """Return the comparison with plain loops."""
    return partial(merging.merging_equals_plain_loops, name, *overrides)


def mean_of_means(self: Summary, slots: Slots, victims: Tensor, plan: LayerPlan) -> None:
    """Take the last summary for one token."""
    assert slots.log_weight is not None
    for payload in (slots.keys, slots.values):
        held = payload.read(slots.filled)
        payload.write(0, (held[:, :, :1] + take(held, victims).sum(dim=2, keepdim=True)) / (1 + victims.shape[2]))
    slots.log_weight[:, :, 0] = (slots.log_weight[:, :, 0].exp() + victims.shape[2]).log()


def running_mean(self: Summary, slots: Slots, victims: Tensor, plan: LayerPlan) -> None:
    """Update the mean where it is stored."""
    assert slots.log_weight is not None
    number = slots.log_weight[:, :, 0].exp() + victims.shape[2]
    for payload in (slots.keys, slots.values):
        held = payload.read(slots.filled)
        step = (take(held, victims) - held[:, :, :1]).sum(dim=2, keepdim=True) / number[..., None, None]
        payload.write(0, held[:, :, :1] + step.to(held.dtype))
    slots.log_weight[:, :, 0] = number.log()


def weightless(self: Summary, state: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Let the summary count as one token."""
    key, value, log_weight = entry(self, state, width)
    return key, value, log_weight.clamp(max=0)


def with_the_summary(self: Protected, *args: Any, has_empty: bool, **more: Any) -> None:
    """Let the summary leave as any other entry."""
    victims(self, *args, has_empty=False, **more)


def with_padding(leaving: Leaving) -> Tensor:
    """Take padding for text that leaves."""
    return gone(leaving) | (leaving.position < 0)


def rounded_twice(self: Truncation, budget: int) -> int:
    """Round both parts of the budget down."""
    return max(int(self.keeps_newest), int((1 - self.split) * budget) if self.truncation == "hybrid" else 0)


def newest_always(self: Truncation, score: Tensor, position: Tensor, budget: Any) -> Tensor:
    """Protect the newest entry of the prompt, too."""
    return Protected.priority(self, score, position, budget)


def newest_only(self: Truncation, budget: int) -> int:
    """Forget about recency."""
    return int(self.keeps_newest)


def newest_forgotten(self: Truncation, budget: int) -> int:
    """Forget about the newest entry."""
    return budget - int(self.split * budget) if self.truncation == "hybrid" else 0


def always_adding(self: CallAttention, seen: Observation) -> None:
    """Sum whatever was asked for."""
    seen.score.add_(seen.weights.mean(dim=2))


def lengths_count(keys: Tensor, kept: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
    """Compare by product instead of cosine."""
    best = (keys @ kept.transpose(-1, -2)).masked_fill(~exists[:, :, None], -torch.inf).max(dim=-1)
    return best.values, best.indices


def with_victims(keys: Tensor, victims: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Let an entry that leaves be the one most like itself."""
    return most_similar_slot(keys, victims, torch.ones_like(candidates))


def without_memory(self: NearestMerge, state: Tensor, similarity: Tensor, gone: Tensor) -> Tensor:
    """Forget the last threshold."""
    return threshold(self, torch.zeros_like(state), similarity, gone)


def always_merged(
    self: FollowingMerge, score: Tensor, mean: Tensor, position: Tensor, layer: int, heads: int
) -> Tensor:
    """Let every lot fall."""
    return torch.ones_like(score, dtype=torch.bool).expand(-1, heads, -1)


def never_merged(self: FollowingMerge, score: Tensor, mean: Tensor, position: Tensor, layer: int, heads: int) -> Tensor:
    """Let no lot fall."""
    return torch.zeros_like(score, dtype=torch.bool).expand(-1, heads, -1)


def keys_as_well(self: FollowingMerge, leaving: Leaving) -> Merged:
    """Spread the keys, too."""
    both = Leaving(**{**vars(leaving), "values": leaving.keys})
    merged = spread_at_prompt_end(self, leaving)
    return Merged(keys=spread_at_prompt_end(self, both).values, values=merged.values)


def any_run(self: RunMerge, keys: Tensor, position: Tensor) -> Tensor:
    """Take the whole prompt for one run."""
    return torch.zeros(keys.shape[:3], dtype=torch.int64)


def last_is_pivot(self: RunMerge, leaving: Leaving) -> Tensor:
    """Merge into the newest entry of a run."""
    order = leaving.position.to(leaving.score.dtype).expand_as(leaving.score)
    return chosen(self, Leaving(**{**vars(leaving), "score": order}))


def uncompensated(self: Residual, state: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Let every mean count as one token."""
    keys, values, log_weight = means(self, state, width)
    return keys, values, log_weight.clamp(max=0)


def first_mean(self: Residual, state: Tensor, gone: Tensor, sets: int) -> Tensor:
    """Let everything join the first mean."""
    chosen = joins(self, state, gone, sets)
    return torch.arange(self.num_entries).expand_as(chosen) == 0


def growing_with_variance(layer: Scored) -> list[float]:
    """Give more to layers with peaked attention."""
    return [-each for each in variance_of(layer)]


def variance_with_padding(layer: Scored) -> list[float]:
    """Count padding as entries nobody attends to."""
    return layer.score.var(dim=-1, unbiased=False).mean(dim=1).tolist()


def without_a_floor(plan: LayerPlan, most: int) -> int:
    """Protect nothing."""
    return 1


def skipping_anyway(self: ByVariance, plans: Any, view: ModelView, run: RunShape) -> list[tuple[int, ...] | None]:
    """Leave layers whole in shallow models, too."""
    return by_variance_entries(replace(self, least_layers=1), plans, view, run)


_NO_SELF = nearest._OWN_AND_WHOLE | {"exponential": ((torch.e, 0.0, 0.0), (0.0, 1.0, 0.0))}
_NO_SELF |= {"pivot": ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0))}
_ONE_FOR_E = nearest._OWN_AND_WHOLE | {"exponential": ((1.0, 0.0, 0.0), (1.0, 1.0, 0.0))}

MUTANTS = (
    Mutant(
        name="layers with peaked attention keep more",
        patches=((variance, "_variance", growing_with_variance),),
        killed_by=(partial(layer_variance.layers_share_by_the_variance_of_their_scores, "llama_gqa"),),
    ),
    Mutant(
        name="padding counts for the variance",
        patches=((variance, "_variance", variance_with_padding),),
        killed_by=(layer_variance.padding_has_no_part,),
    ),
    Mutant(
        name="a share of layers has no floor",
        patches=((variance, "least_budget", without_a_floor),),
        killed_by=(layer_variance.a_share_holds_what_is_protected,),
    ),
    Mutant(
        name="shallow models have whole layers",
        patches=((ByVariance, "entries", skipping_anyway),),
        killed_by=(layer_variance.the_first_and_last_layers_of_deep_models_stay_whole,),
    ),
    Mutant(
        name="the summary is a mean of means",
        patches=((Summary, "while_decoding", mean_of_means),),
        killed_by=(merging_cases.the_summary_is_the_mean_of_all_that_left, loops("fixed_size")),
    ),
    Mutant(
        name="the summary is updated where it is stored",
        patches=((Summary, "while_decoding", running_mean),),
        killed_by=(merging_cases.a_summary_of_narrow_numbers_is_not_rounded,),
    ),
    Mutant(
        name="the summary counts as one token",
        patches=((Summary, "_entry", weightless),),
        killed_by=(
            loops("fixed_size"),
            partial(merging.a_summary_of_equal_entries_is_exact, "fixed_size"),
            partial(merging.tokens_are_counted_once, "fixed_size"),
        ),
    ),
    Mutant(
        name="the summary may leave",
        patches=((Protected, "victims", with_the_summary),),
        killed_by=(
            partial(merging_cases.the_summary_is_the_mean_of_all_that_left, "strategy/scorer=recency"),
            partial(merging.tokens_are_counted_once, "zeromerge", "evicted.num_entries=3", "strategy/scorer=recency"),
        ),
    ),
    Mutant(
        name="padding leaves, too",
        patches=((Leaving, "gone", with_padding),),
        killed_by=(
            loops("fixed_size", "strategy/trigger=prefill_end"),
            loops("d2o", "strategy/trigger=prefill_end"),
            loops("zeromerge", "evicted.num_entries=3", "strategy/trigger=prefill_end"),
        ),
    ),
    Mutant(
        name="both parts of a hybrid are rounded down",
        patches=((Truncation, "recent", rounded_twice),),
        killed_by=(
            merging_cases.truncation_of_the_worked_example,
            loops("fixed_size", "selector.truncation=hybrid", "selector.split=0.3"),
        ),
    ),
    Mutant(
        name="the newest entry of the prompt is protected",
        patches=((Truncation, "priority", newest_always),),
        killed_by=(merging_cases.truncation_of_the_worked_example,),
    ),
    Mutant(
        name="a hybrid forgets about recency",
        patches=((Truncation, "recent", newest_only),),
        killed_by=(merging_cases.recency_counts_while_decoding,),
    ),
    Mutant(
        name="the newest entry may leave",
        patches=((Truncation, "recent", newest_forgotten),),
        killed_by=(merging_cases.the_newest_entry_stays_while_decoding,),
    ),
    Mutant(
        name="calls are always summed",
        patches=((CallAttention, "observe", always_adding),),
        killed_by=(merging_cases.calls_are_forgotten_averaged_or_summed, loops("fixed_size")),
    ),
    Mutant(
        name="long keys are like any other",
        patches=((nearest, "_most_similar", lengths_count),),
        killed_by=(loops("d2o"), loops("lookm")),
    ),
    Mutant(
        name="what leaves merges into itself",
        patches=((nearest, "_most_similar_slot", with_victims),),
        killed_by=(loops("d2o"),),
    ),
    Mutant(
        name="the kept entry has no weight of its own",
        patches=((nearest, "_OWN_AND_WHOLE", _NO_SELF),),
        killed_by=(
            loops("d2o"),
            partial(merging.equal_entries_merge_without_a_trace, "d2o"),
            partial(merging.equal_entries_merge_without_a_trace, "lookm"),
        ),
    ),
    Mutant(
        name="the kept entry weighs one instead of e",
        patches=((nearest, "_OWN_AND_WHOLE", _ONE_FOR_E),),
        killed_by=(loops("d2o"),),
    ),
    Mutant(
        name="the threshold has no memory",
        patches=((NearestMerge, "_threshold", without_memory),),
        killed_by=(loops("d2o"),),
    ),
    Mutant(
        name="every lot falls",
        patches=((FollowingMerge, "_lot_falls", always_merged),),
        killed_by=(
            loops("cam"),
            merging_cases.merges_without_a_chance_leave_values_alone,
            merging_cases.merges_over_seeds_are_as_frequent_as_their_chance,
        ),
    ),
    Mutant(
        name="no lot falls",
        patches=((FollowingMerge, "_lot_falls", never_merged),),
        killed_by=(loops("cam"), merging_cases.certain_merges_conserve_the_sum_of_values),
    ),
    Mutant(
        name="keys are spread as well",
        patches=((FollowingMerge, "at_prompt_end", keys_as_well),),
        killed_by=(loops("cam"), merging_cases.certain_merges_conserve_the_sum_of_values),
    ),
    Mutant(
        name="a prompt is one run",
        patches=((RunMerge, "_runs", any_run),),
        killed_by=(
            loops("kvmerger"),
            partial(merging.equals_dropping, "kvmerger", "evicted.threshold=1"),
        ),
    ),
    Mutant(
        name="the newest of a run is its pivot",
        patches=((RunMerge, "_pivots", last_is_pivot),),
        killed_by=(loops("kvmerger", "evicted.threshold=0.3"),),
    ),
    Mutant(
        name="a mean counts as one token",
        patches=((Residual, "_entries", uncompensated),),
        killed_by=(
            loops("zeromerge", "evicted.num_entries=3"),
            partial(merging.a_summary_of_equal_entries_is_exact, "zeromerge", "evicted.num_entries=3"),
            partial(merging.tokens_are_counted_once, "zeromerge", "evicted.num_entries=3"),
        ),
    ),
    Mutant(
        name="everything joins the first mean",
        patches=((Residual, "_nearest", first_mean),),
        killed_by=(loops("zeromerge", "evicted.num_entries=3"),),
    ),
)
