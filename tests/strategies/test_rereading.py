"""Nothing is kept: every step reads everything again."""

from __future__ import annotations

import pytest

from tests.mutants.core_mutant import Check, Mutant, each_of, oracles_in, seen_to_fail
from tests.mutants.rereading import MUTANTS
from tests.support import rereading
from tests.support.models import NAMES


@pytest.mark.parametrize("name", NAMES)
def test_reading_again_equals_the_full_cache(name: str) -> None:
    rereading.reading_again_equals_the_full_cache(name, (24, 24))
    rereading.reading_again_equals_the_full_cache(name)
    rereading.reading_again_equals_the_full_cache(name, chunks=(7, 1, 16), steps=(5, 1, 6))


@pytest.mark.parametrize("lengths", [(24,), rereading.RAGGED], ids=str)
def test_ids_are_all_that_is_kept(lengths: tuple[int, ...]) -> None:
    rereading.ids_are_all_that_is_kept(lengths)


def test_a_step_reads_everything() -> None:
    rereading.a_step_reads_everything()


def test_greedy_tokens_are_those_of_no_cache_at_all() -> None:
    rereading.greedy_tokens_are_those_of_no_cache_at_all()


def test_other_caches_are_left_alone() -> None:
    rereading.other_caches_are_left_alone()


def test_operations_are_those_that_are_counted() -> None:
    rereading.operations_are_those_that_are_counted()


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert not oracles_in(rereading) - seen_to_fail(MUTANTS)
