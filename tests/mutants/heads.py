"""Methods that treat heads differently, with one thing wrong each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

from torch import Tensor

from kvbench.cache.plan import LayerPlan
from kvbench.cache.views import Observation, PromptView
from kvbench.strategies.budget import heads, policies
from kvbench.strategies.budget.heads import EchoAndInduction, FullOrStreaming, GatedHeads, ScoredHeads
from kvbench.strategies.budget.policies import CheapestPolicy
from kvbench.strategies.budget.scores import HeadScores
from kvbench.strategies.evicted.summary import Summary
from kvbench.strategies.selection.policies import MeanAttention, PolicyOrder
from kvbench.strategies.selection.selector import Protected
from kvbench.types import ModelView
from tests.mutants.core_mutant import Mutant
from tests.support import head_layers
from tests.support import heads as oracles

counts = FullOrStreaming.counts
row = ScoredHeads._row
summary_entry = Summary._entry


def window_in_the_pool(
    self: ScoredHeads, amount: int, length: int, weights: Sequence[Fraction], plan: LayerPlan
) -> Any:
    """Take the pool out of the whole budget, as if the window were free."""
    return row(self, amount, length, weights, replace(plan, selector=replace(plan.selector, num_recent=0)))  # type: ignore[type-var]


def rounded(self: ScoredHeads, amount: int, length: int, weights: Sequence[Fraction], plan: LayerPlan) -> list[int]:
    """Round each share by itself."""
    spare = amount - plan.selector.recent(amount)
    if spare <= 0 or amount >= length:
        return [amount] * len(weights)
    pooled = int(spare / Fraction(str(self.beta)))
    whole = sum(weights) or 1
    return [min(length, amount - pooled + round(pooled * len(weights) * weight / whole)) for weight in weights]


def everyone_equal(self: ScoredHeads, amount: int, length: int, weights: Sequence[Fraction], plan: LayerPlan) -> Any:
    """Forget the scores."""
    return [amount] * len(weights)


def own_part_pooled(self: ScoredHeads, amount: int, length: int, weights: Sequence[Fraction], plan: LayerPlan) -> Any:
    """Keep nothing for a head itself."""
    return row(replace(self, beta=1), amount, length, weights, plan)


def first_heads(weights: Sequence[Fraction], total: int) -> list[int]:
    """Give what cannot be divided to the first."""
    each, left = divmod(total, len(weights))
    return [each + (index < left) + (1 if index == 0 else -1 if index == 1 else 0) for index in range(len(weights))]


def above_only(self: GatedHeads, scores: HeadScores, layers: Sequence[int]) -> heads.Heads:
    """Leave out the heads at the quantile."""
    gates = dict(heads._heads(scores.scores["gate"], layers))
    quantile = sorted(gates.values())[int(self.sparsity * (len(gates) - 1))]
    return {head for head, gate in gates.items() if gate > quantile}


def zero_gates_count(self: GatedHeads, scores: HeadScores, layers: Sequence[int]) -> heads.Heads:
    """Let heads with gate 0 keep everything where the quantile is 0."""
    gates = dict(heads._heads(scores.scores["gate"], layers))
    return {head for head, gate in gates.items() if gate >= sorted(gates.values())[len(gates) // 2]}


def swapped(self: FullOrStreaming, budgets: Any, plans: Any, view: ModelView, run: Any) -> Any:
    """Take the heads in reverse order."""
    made = counts(self, budgets, plans, view, run)
    return [layer and tuple(tuple(reversed(row)) for row in layer) for layer in made]


def without_sinks(self: FullOrStreaming, plans: Sequence[LayerPlan], view: ModelView, run: Any) -> Any:
    """Forget that sinks are on top of recent tokens."""
    return [(max(self.recent, int(self.recent_share * max(run.prompt_lengths))),) * run.batch_size for _ in plans]


def longest_row(self: FullOrStreaming, plans: Sequence[LayerPlan], view: ModelView, run: Any) -> Any:
    """Take the fraction of the longest prompt for every row."""
    most = max(self.recent, int(self.recent_share * run.prompt_tokens))
    return [(plans[0].selector.num_sink + most,) * run.batch_size for _ in plans]


def induction_only(self: EchoAndInduction, scores: HeadScores, layers: Sequence[int]) -> heads.Heads:
    """Forget the echo heads."""
    ranked = sorted(heads._heads(scores.scores["induction"], layers), key=lambda item: -item[1])
    return {head for head, _ in ranked[: int(self.induction_share * len(ranked) + 1)]}


def weighs_one(self: Summary, state: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Let a summary weigh as one token."""
    key, value, weight = summary_entry(self, state, width)
    return key, value, weight.clamp(max=0)


def summed(view: PromptView) -> Tensor:
    """Sum instead of taking the mean."""
    return view.attention_received()


def replaced(self: MeanAttention, seen: Observation) -> None:
    """Forget what was received before."""
    seen.score.copy_(seen.weights.mean(dim=2))


def last_choice(self: CheapestPolicy, masses: Sequence[float], kept: Sequence[int]) -> int | None:
    """Take the dearest policy that recovers enough."""
    enough = [entries for mass, entries in zip(masses, kept, strict=True) if mass >= self.threshold]
    return enough[-1] if enough else None


def cheapest_at_all(self: CheapestPolicy, masses: Sequence[float], kept: Sequence[int]) -> int | None:
    """Take the cheapest policy where none recovers enough."""
    enough = [entries for mass, entries in zip(masses, kept, strict=True) if mass >= self.threshold]
    return enough[0] if enough else kept[0]


def nothing_local(self: PolicyOrder, budget: Sequence[int], lengths: Sequence[int]) -> Protected:
    """Forget that recent entries are protected."""
    return Protected(num_sink=self.num_sink, num_recent=0, recent_share=0.0)


headkv_dense = partial(oracles.headkv_equals_dense_attention_per_head, "llama_mha")
streams = partial(oracles.streaming_heads_keep_sinks_and_recent, "llama_gqa")
opened = partial(oracles.all_gates_open_is_the_full_cache, "llama_gqa")
shut = partial(oracles.all_gates_shut_is_sinks_and_recent, "llama_gqa")
special = partial(head_layers.a_threshold_of_zero_keeps_special_tokens, "llama_gqa")
full = partial(head_layers.a_threshold_above_one_is_the_full_cache, "llama_gqa")

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="the window is part of the pool",
        patches=((ScoredHeads, "_row", window_in_the_pool),),
        killed_by=(oracles.the_worked_pool,),
    ),
    Mutant(
        name="shares are rounded alone",
        patches=((ScoredHeads, "_row", rounded),),
        killed_by=(oracles.the_pool_is_exact,),
    ),
    Mutant(name="scores are forgotten", patches=((ScoredHeads, "_row", everyone_equal),), killed_by=(headkv_dense,)),
    Mutant(
        name="a head has no part of its own",
        patches=((ScoredHeads, "_row", own_part_pooled),),
        killed_by=(oracles.the_worked_pool,),
    ),
    Mutant(
        name="equal heads get unequal shares",
        patches=((heads, "apportion", first_heads),),
        killed_by=(oracles.uniform_scores_are_snapkv,),
    ),
    Mutant(
        name="heads at the quantile stream",
        patches=((GatedHeads, "full", above_only),),
        killed_by=(oracles.gates_choose_heads, opened),
    ),
    Mutant(
        name="gates of 0 are open",
        patches=((GatedHeads, "full", zero_gates_count),),
        killed_by=(oracles.gates_choose_heads, shut),
    ),
    Mutant(
        name="heads change places",
        patches=((FullOrStreaming, "counts", swapped),),
        killed_by=(oracles.gates_choose_heads, oracles.repetition_chooses_heads),
    ),
    Mutant(
        name="sinks count as recent tokens",
        patches=((FullOrStreaming, "entries", without_sinks),),
        killed_by=(streams, shut),
    ),
    Mutant(
        name="the longest row counts for all",
        patches=((FullOrStreaming, "entries", longest_row),),
        killed_by=(oracles.streams_follow_the_prompt,),
    ),
    Mutant(
        name="echo heads are forgotten",
        patches=((EchoAndInduction, "full", induction_only),),
        killed_by=(oracles.repetition_chooses_heads, oracles.without_a_summary_it_is_duoattention),
    ),
    Mutant(
        name="a summary weighs one token",
        patches=((Summary, "_entry", weighs_one),),
        killed_by=(head_layers.razor_equals_a_plain_loop,),
    ),
    Mutant(
        name="attention is summed",
        patches=((policies, "mean_received", summed), (MeanAttention, "prompt", lambda self, view: summed(view))),
        killed_by=(head_layers.policies_of_the_six_tokens,),
    ),
    Mutant(
        name="earlier attention is forgotten",
        patches=((MeanAttention, "observe", replaced),),
        killed_by=(head_layers.policies_equal_a_slow_route,),
    ),
    Mutant(
        name="the dearest policy is taken",
        patches=((CheapestPolicy, "_choice", last_choice),),
        killed_by=(head_layers.policies_of_the_six_tokens, special),
    ),
    Mutant(
        name="no policy means the cheapest", patches=((CheapestPolicy, "_choice", cheapest_at_all),), killed_by=(full,)
    ),
    Mutant(
        name="recent entries are not protected",
        patches=((PolicyOrder, "fit", nothing_local),),
        killed_by=(head_layers.policies_equal_a_slow_route,),
    ),
)
