"""What is planned: every oracle holds, and fails on a planner that gets one thing wrong."""

from __future__ import annotations

import pytest

from tests.mutants import planning as mutants
from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.support import planning, recomputing, searching

ORACLES: tuple[Check, ...] = (
    recomputing.lengths_take_as_long_as_played,
    recomputing.no_other_length_takes_less,
    recomputing.the_worked_layer_gains_what_was_worked_out,
    recomputing.grouped_heads_compute_nothing_again,
    recomputing.a_faster_link_means_fewer_and_a_faster_device_more,
    planning.work_overlaps_or_waits_as_worked_out,
    planning.steps_take_what_was_worked_out,
    planning.a_step_away_moves_what_is_counted_by_hand,
    planning.a_prompt_takes_what_is_counted_by_hand,
    planning.bytes_are_those_counted_by_hand,
    planning.no_more_tokens_would_fit,
    planning.the_worked_memory_keeps_the_worked_tokens,
    planning.a_share_is_of_whole_tokens,
    searching.nothing_that_was_tried_beats_a_plan,
    searching.plans_fit,
    searching.more_of_anything_is_never_slower,
    searching.a_device_that_is_the_host_has_no_tokens_away_but_on_disk,
    planning.a_record_is_read_as_it_was_written,
)


@pytest.mark.parametrize("oracle", ORACLES, ids=lambda oracle: oracle.__name__)
def test_what_is_planned_is_what_is_worked_out_otherwise(oracle: Check) -> None:
    oracle()


@each_of(mutants.MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert set(ORACLES) - seen_to_fail(mutants.MUTANTS) == set()
