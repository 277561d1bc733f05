"""TurboQuant: levels for normal numbers, and rotations after which every number is one."""

from __future__ import annotations

import pytest

from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.mutants.turboquant import MUTANTS
from tests.support import turboquant

each_size = pytest.mark.parametrize("bits", [2, 3, 4])


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_levels_are_those_published(bits: int) -> None:
    turboquant.levels_are_those_published(bits)


@each_size
def test_errors_are_those_of_normal_numbers(bits: int) -> None:
    turboquant.errors_are_those_of_normal_numbers(bits)


def test_nothing_stays_nothing() -> None:
    turboquant.nothing_stays_nothing()


@pytest.mark.parametrize("size", [1, 4, 12, 64])
def test_a_rotation_may_be_any(size: int) -> None:
    turboquant.a_rotation_may_be_any(size)


@each_size
def test_bytes_are_those_of_codes_norms_and_one_matrix(bits: int) -> None:
    turboquant.bytes_are_those_of_codes_norms_and_one_matrix(bits)


@each_size
def test_a_token_is_written_once(bits: int) -> None:
    turboquant.a_token_is_written_once(bits)


def test_a_step_needs_little_room() -> None:
    turboquant.a_step_needs_little_room()


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert {
        turboquant.levels_are_those_published,
        turboquant.errors_are_those_of_normal_numbers,
        turboquant.nothing_stays_nothing,
        turboquant.a_rotation_may_be_any,
        turboquant.bytes_are_those_of_codes_norms_and_one_matrix,
        turboquant.a_token_is_written_once,
        turboquant.a_step_needs_little_room,
    } == seen_to_fail(MUTANTS)
