"""Methods that are a scorer: KeyDiff, LagKV, Expected Attention, CriticalKV, ChunkKV, R-KV and FINCH."""

from __future__ import annotations

import pytest

from kvbench.strategies.selection import critical
from tests.mutants import rerotation as turning
from tests.mutants import scorers as single
from tests.mutants import scorers_wrapping as wrapping
from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.support import expectation, redundant, rerotation, scorers, wrappers

MUTANTS: tuple[Mutant, ...] = (*single.MUTANTS, *wrapping.MUTANTS, *turning.MUTANTS)
ORACLES = (
    scorers.scores_equal_loops,
    scorers.worked_key_difference,
    scorers.size_of_keys_does_not_matter,
    scorers.measured_again_while_decoding,
    scorers.finished_partitions_are_final,
    scorers.partitions_lose_the_same,
    scorers.unfinished_text_keeps_the_latest,
    expectation.equals_drawn_queries,
    expectation.size_of_values_does_not_matter,
    expectation.without_spread_is_the_mean_query,
    wrappers.base_of_equal_values,
    wrappers.everything_first_is_the_base,
    wrappers.first_stage_stays,
    wrappers.chunks_stay_whole,
    wrappers.steady_beats_peak,
    wrappers.chunks_of_one_are_the_base,
    wrappers.adding_bases_are_asked_once,
    wrappers.worked_question,
    redundant.measured_again_every_period,
    redundant.last_of_equal_keys_is_least_redundant,
    redundant.importance_alone,
    redundant.short_prompts_are_scored,
    rerotation.keys_are_at_their_ranks,
    rerotation.decoding_goes_on_at_the_rank,
    rerotation.positions_count_what_is_held,
    rerotation.rerotating_everything_changes_nothing,
)
three_models = pytest.mark.parametrize("model", ["llama_gqa", "llama_mha", "gpt2"])
rotating_models = pytest.mark.parametrize("model", ["llama_gqa", "llama_mha"])


def test_key_difference_keeps_the_keys_unlike_the_mean() -> None:
    scorers.worked_key_difference()


def test_key_difference_ignores_the_size_of_keys() -> None:
    scorers.size_of_keys_does_not_matter()


@three_models
def test_key_difference_equals_plain_loops(model: str) -> None:
    scorers.scores_equal_loops("keydiff", model, scorers.key_difference)


@three_models
def test_key_difference_is_measured_again_while_decoding(model: str) -> None:
    scorers.measured_again_while_decoding(model)


@three_models
@pytest.mark.parametrize("lag", [2, 3, 4, 8])
def test_lag_ranks_equal_plain_loops(model: str, lag: int) -> None:
    scorers.scores_equal_loops("lagkv", model, scorers.lag_rank(lag), [f"scorer.lag={lag}"])


def test_finished_partitions_keep_their_scores_as_text_follows() -> None:
    scorers.finished_partitions_are_final()


def test_every_finished_partition_loses_the_same_share() -> None:
    scorers.partitions_lose_the_same()


def test_a_text_without_finished_partitions_keeps_sinks_and_the_latest() -> None:
    scorers.unfinished_text_keeps_the_latest()


@three_models
@pytest.mark.parametrize("spread", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_expected_attention_equals_plain_loops(model: str, spread: bool, norm: bool) -> None:
    loops = expectation.expected_attention(16, with_covariance=spread, with_value_norm=norm)
    switches = [f"scorer.with_covariance={str(spread).lower()}", f"scorer.with_value_norm={str(norm).lower()}"]
    scorers.scores_equal_loops("expected_attention", model, loops, switches)


def test_expected_attention_is_the_mean_over_drawn_queries() -> None:
    expectation.equals_drawn_queries()


def test_expected_attention_ignores_the_size_of_values() -> None:
    expectation.size_of_values_does_not_matter()


def test_expected_attention_without_spread_is_the_mean_querys() -> None:
    expectation.without_spread_is_the_mean_query()


@three_models
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_critical_scores_equal_plain_loops(model: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(critical, "_BLOCK", 5)
    loops = wrappers.critical(share, 0.25)
    scorers.scores_equal_loops("criticalkv", model, loops, [f"scorer.first_share={share}", "scorer.epsilon=0.25"])


def test_critical_of_equal_values_is_its_base() -> None:
    wrappers.base_of_equal_values()


def test_a_first_stage_of_everything_is_the_base() -> None:
    wrappers.everything_first_is_the_base()


def test_the_first_stage_always_stays() -> None:
    wrappers.first_stage_stays()


@three_models
def test_chunk_means_equal_plain_loops(model: str) -> None:
    scorers.scores_equal_loops("chunkkv", model, wrappers.chunk_means)


@three_models
def test_chunks_stay_whole(model: str) -> None:
    wrappers.chunks_stay_whole(model)


def test_a_chunk_of_steady_scores_beats_one_with_a_peak() -> None:
    wrappers.steady_beats_peak()


def test_chunks_of_one_are_the_base_over_all_heads() -> None:
    wrappers.chunks_of_one_are_the_base()


def test_a_base_that_adds_up_is_asked_once() -> None:
    wrappers.adding_bases_are_asked_once()


@three_models
def test_redundancy_equals_plain_loops(model: str) -> None:
    scorers.scores_equal_loops("rkv", model, redundant.scores())


@three_models
def test_redundancy_is_measured_again_every_period(model: str) -> None:
    redundant.measured_again_every_period(model)


def test_of_equal_keys_the_last_is_least_redundant() -> None:
    redundant.last_of_equal_keys_is_least_redundant()


def test_importance_alone_is_the_largest_vote_nearby() -> None:
    redundant.importance_alone()


def test_prompts_no_longer_than_the_window_are_scored() -> None:
    redundant.short_prompts_are_scored()


@three_models
def test_question_attention_equals_plain_loops(model: str) -> None:
    if model == "gpt2":
        scorers.scores_equal_loops("finch", model, wrappers.question, ["strategy/position=original"])
    else:
        scorers.scores_equal_loops("finch", model, wrappers.question)


def test_the_question_of_the_worked_example() -> None:
    wrappers.worked_question()


@rotating_models
def test_kept_keys_are_rotated_to_their_ranks(model: str) -> None:
    rerotation.keys_are_at_their_ranks(model)


@rotating_models
def test_decoding_goes_on_at_the_rank(model: str) -> None:
    rerotation.decoding_goes_on_at_the_rank(model)


def test_new_positions_count_what_is_held() -> None:
    rerotation.positions_count_what_is_held()


@rotating_models
def test_rerotating_everything_changes_nothing(model: str) -> None:
    rerotation.rerotating_everything_changes_nothing(model)


# -- the oracles can fail -------------------------------------------------------------------------------------------


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert set(ORACLES) - seen_to_fail(MUTANTS) == set()
