"""The oracles can fail: each is run on a core with one thing broken, and has to notice."""

from __future__ import annotations

import pytest

from tests.mutants import core_doors, core_kernels, core_layer, core_scores, core_selection, core_storage
from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.support import checks, generation, parts, scores, steps, storage, toy

MUTANTS: tuple[Mutant, ...] = (
    *core_doors.MUTANTS,
    *core_kernels.MUTANTS,
    *core_layer.MUTANTS,
    *core_scores.MUTANTS,
    *core_selection.MUTANTS,
    *core_storage.MUTANTS,
)
ORACLES = (
    checks.equals_dense_attention_under_its_mask,
    checks.budget_above_length_is_baseline,
    checks.baseline_is_the_stock_model,
    checks.positions_are_true,
    checks.learned_positions_are_ranks,
    checks.many_tokens_equal_one_by_one,
    checks.chunks_equal_one_shot,
    checks.padded_rows_equal_rows_alone,
    checks.second_sequence_is_fresh,
    checks.protected_entries_stay,
    checks.restore_is_exact,
    checks.growing_equals_fixed,
    checks.begin_is_optional,
    scores.scores_equal_eager_attention,
    scores.mass_is_conserved,
    scores.grouped_heads_equal_repeated_heads,
    storage.bytes_follow_their_formulas,
    storage.byte_budget_is_kept,
    storage.a_prompt_at_once_is_never_stored_whole,
    storage.fractions_are_exact,
    steps.steady_decode_does_the_same_in_place,
    generation.baseline_generates_what_the_stock_cache_does,
    generation.generate_equals_our_loop,
    generation.padded_generate_equals_rows_alone,
    generation.engine_feeds_what_it_is_given,
    parts.keep_equals_sorting,
    parts.victim_is_the_least_unprotected,
    parts.lots_are_fair,
    parts.one_query_over_tiles_equals_dense,
    parts.log_weight_counts_copies,
    parts.prompt_blocks_equal_dense,
    parts.column_sums_equal_dense,
    parts.sums_are_not_rounded_to_the_model,
    parts.no_square_matrix,
    parts.turning_adds_rotations,
    toy.prompt_sets,
    toy.mass_is_the_column_sum,
    toy.window_votes_are_pooled,
    toy.mass_accumulates_while_decoding,
    toy.last_query_forgets_earlier_rows,
    toy.newest_may_leave_while_decoding,
    toy.last_query_replaces_while_decoding,
    toy.small_norms_stay,
    toy.skipped_layers_keep_everything,
)


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert set(ORACLES) - seen_to_fail(MUTANTS) == set()


def test_names_of_mutants_differ() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
