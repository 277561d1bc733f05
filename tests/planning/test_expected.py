"""What a measured step should have taken: every oracle holds, and fails on a model that gets one thing wrong."""

from __future__ import annotations

import pytest

from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.mutants.expected import MUTANTS
from tests.support import expected

ORACLES: tuple[Check, ...] = (
    expected.the_full_cache_takes_what_it_took,
    expected.fewer_bytes_take_less_in_proportion_until_launches_bind,
    expected.steps_away_take_what_was_worked_out,
    expected.where_the_host_computes_bytes_are_read_and_written,
    expected.a_slow_model_makes_no_link_slow,
    expected.a_rate_that_nobody_measured_is_missed,
    expected.nothing_crosses_a_link_faster_than_its_bandwidth,
)


@pytest.mark.parametrize("oracle", ORACLES, ids=lambda oracle: oracle.__name__)
def test_what_a_step_should_take_is_what_is_worked_out_by_hand(oracle: Check) -> None:
    oracle()


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert set(ORACLES) - seen_to_fail(MUTANTS) == set()
