"""Selectors and budgets that each get one thing wrong."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.plan import LayerPlan
from kvbench.strategies.budget.base import Uniform
from kvbench.strategies.selection.selector import Protected
from kvbench.types import ModelView, RunShape
from tests.mutants.core_mutant import Mutant
from tests.mutants.core_scores import under_mask
from tests.support import checks, parts, storage, toy

keep, victims, recent = Protected.keep, Protected.victims, Protected.recent
entries, of_rows = Uniform.entries, Uniform._of_rows


def one_recent_too_few(self: Protected, budget: int) -> int:
    """Protect one entry less."""
    return max(0, recent(self, budget) - 1)


def newest_protected(self: Protected, budget: int) -> int:
    """Protect the newest entry, asked or not."""
    return max(1, recent(self, budget))


def float_share(self: Protected, budget: int) -> int:
    """Multiply in floating point."""
    return max(self.num_recent, int(self.recent_share * budget))


def one_kept_too_many(
    self: Protected, score: Tensor, position: Tensor, budget: Sequence[int], lengths: Sequence[int]
) -> tuple[Tensor, bool]:
    """Keep one entry more than the budget."""
    return keep(self, score, position, [most + 1 for most in budget], lengths)


def in_order_of_score(
    self: Protected, score: Tensor, position: Tensor, budget: Sequence[int], lengths: Sequence[int]
) -> tuple[Tensor, bool]:
    """Leave the kept entries as the top-k made them."""
    index, has_holes = keep(self, score, position, budget, lengths)
    best = score.expand(-1, index.shape[1], -1).gather(2, index.clamp(min=0)).argsort(dim=-1)
    return index.gather(2, best), has_holes


def ties_to_the_first(
    self: Protected, score: Tensor, position: Tensor, budget: Sequence[int], lengths: Sequence[int]
) -> tuple[Tensor, bool]:
    """Prefer the lower position where scores tie."""
    return keep(self, score - 1e-9 * torch.arange(score.shape[-1]), position, budget, lengths)


def sinks_may_leave(
    self: Protected, score: Tensor, position: Tensor, newest: Any, recent: Any, out: Tensor, *, has_empty: bool
) -> None:
    """Protect recent entries only."""
    bare = Protected(num_sink=0, num_recent=self.num_recent, recent_share=self.recent_share)
    victims(bare, score, position, newest, recent, out, has_empty=has_empty)


def recent_may_leave(
    self: Protected, score: Tensor, position: Tensor, newest: Any, recent: Any, out: Tensor, *, has_empty: bool
) -> None:
    """Protect sinks only."""
    victims(self, score, position, newest, recent * 0, out, has_empty=has_empty)


def best_leaves(
    self: Protected, score: Tensor, position: Tensor, newest: Any, recent: Any, out: Tensor, *, has_empty: bool
) -> None:
    """Let the best score go."""
    victims(self, -score, position, newest, recent, out, has_empty=has_empty)


def empty_may_leave(
    self: Protected, score: Tensor, position: Tensor, newest: Any, recent: Any, out: Tensor, *, has_empty: bool
) -> None:
    """Choose among all slots, empty ones included."""
    score = torch.where(position < 0, -torch.inf, score)
    out.copy_(score.topk(out.shape[-1], dim=-1, largest=False).indices)


def float_ratio(self: Uniform, plans: Sequence[LayerPlan], view: ModelView, run: RunShape) -> tuple[int, ...]:
    """Multiply in floating point."""
    if self.unit != "ratio":
        return of_rows(self, plans, view, run)
    return tuple(max(1, int(self.amount * length)) for length in run.prompt_lengths)


def longest_row_for_all(self: Uniform, plans: Sequence[LayerPlan], view: ModelView, run: RunShape) -> tuple[int, ...]:
    """Take the ratio of the padded prompt."""
    return (max(of_rows(self, plans, view, run)),) * run.batch_size


def no_slot_for_the_new_entry(
    self: Uniform, plans: Sequence[LayerPlan], view: ModelView, run: RunShape
) -> tuple[int, ...]:
    """Forget that the newest entry needs a slot too."""
    return tuple(most + (self.unit == "bytes") for most in of_rows(self, plans, view, run))


def never_above_the_prompt(
    self: Uniform, plans: Sequence[LayerPlan], view: ModelView, run: RunShape
) -> tuple[int, ...]:
    """Cut a budget at the prompt's length, although the sequence goes on."""
    return tuple(map(min, of_rows(self, plans, view, run), run.prompt_lengths))


def no_layer_skipped(
    self: Uniform, plans: Sequence[LayerPlan], view: ModelView, run: RunShape
) -> list[tuple[int, ...] | None]:
    """Compress every layer."""
    return [of_rows(self, plans, view, run)] * len(plans)


MUTANTS = (
    Mutant(
        name="the recent window is one short",
        patches=((Protected, "recent", one_recent_too_few),),
        killed_by=(under_mask("h2o"), under_mask("random_eviction"), parts.keep_equals_sorting),
    ),
    Mutant(
        name="the newest entry is protected unasked",
        patches=((Protected, "recent", newest_protected),),
        killed_by=(
            toy.prompt_sets,
            toy.newest_may_leave_while_decoding,
            under_mask("tova"),
            parts.keep_equals_sorting,
        ),
    ),
    Mutant(
        name="shares are multiplied in floating point",
        patches=((Protected, "recent", float_share),),
        killed_by=(storage.fractions_are_exact,),
    ),
    Mutant(
        name="one entry too many is kept",
        patches=((Protected, "keep", one_kept_too_many),),
        killed_by=(toy.prompt_sets, parts.keep_equals_sorting),
    ),
    Mutant(
        name="kept entries lie in order of score",
        patches=((Protected, "keep", in_order_of_score),),
        killed_by=(toy.prompt_sets, parts.keep_equals_sorting),
    ),
    Mutant(
        name="ties go to the first",
        patches=((Protected, "keep", ties_to_the_first),),
        killed_by=(parts.keep_equals_sorting,),
    ),
    Mutant(
        name="sinks may leave while decoding",
        patches=((Protected, "victims", sinks_may_leave),),
        killed_by=(
            parts.victim_is_the_least_unprotected,
            partial(checks.protected_entries_stay, "tova", "llama_gqa"),
            under_mask("random_eviction"),
        ),
    ),
    Mutant(
        name="recent entries may leave while decoding",
        patches=((Protected, "victims", recent_may_leave),),
        killed_by=(
            parts.victim_is_the_least_unprotected,
            partial(checks.protected_entries_stay, "tova", "llama_gqa"),
            toy.mass_accumulates_while_decoding,
            under_mask("h2o"),
        ),
    ),
    Mutant(
        name="the best entry leaves",
        patches=((Protected, "victims", best_leaves),),
        killed_by=(parts.victim_is_the_least_unprotected, under_mask("tova"), under_mask("random_eviction")),
    ),
    Mutant(
        name="an empty slot leaves",
        patches=((Protected, "victims", empty_may_leave),),
        killed_by=(
            parts.victim_is_the_least_unprotected,
            partial(checks.padded_rows_equal_rows_alone, "tova", "llama_gqa", by_ratio=True),
        ),
    ),
    Mutant(
        name="ratios are multiplied in floating point",
        patches=((Uniform, "_of_rows", float_ratio),),
        killed_by=(storage.fractions_are_exact,),
    ),
    Mutant(
        name="the ratio is of the padded prompt",
        patches=((Uniform, "_of_rows", longest_row_for_all),),
        killed_by=(
            partial(checks.padded_rows_equal_rows_alone, "snapkv", "llama_gqa", by_ratio=True),
            partial(storage.bytes_follow_their_formulas, "knorm", "llama_gqa", "ratio", (24, 15)),
        ),
    ),
    Mutant(
        name="the newest entry has no slot in the byte budget",
        patches=((Uniform, "_of_rows", no_slot_for_the_new_entry),),
        killed_by=(
            partial(storage.byte_budget_is_kept, "h2o", "llama_gqa"),
            partial(storage.byte_budget_is_kept, "snapkv", "llama_gqa"),
        ),
    ),
    Mutant(
        name="a budget is cut at the prompt",
        patches=((Uniform, "_of_rows", never_above_the_prompt),),
        killed_by=(
            partial(checks.budget_above_length_is_baseline, "h2o", "llama_gqa"),
            partial(checks.budget_above_length_is_baseline, "sliding_window", "gpt2"),
        ),
    ),
    Mutant(
        name="no layer is skipped",
        patches=((Uniform, "entries", no_layer_skipped),),
        killed_by=(toy.skipped_layers_keep_everything,),
    ),
)
