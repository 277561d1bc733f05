"""Prompts that are packed piece by piece."""

from __future__ import annotations

import pytest

from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.mutants.pieces import MUTANTS
from tests.support import pieces

of_each_method = pytest.mark.parametrize("name", pieces.METHODS)


@of_each_method
def test_pieces_are_packed_as_a_whole(name: str) -> None:
    pieces.pieces_are_packed_as_a_whole(name)


@of_each_method
def test_a_piece_attends_to_what_is_packed(name: str) -> None:
    pieces.a_piece_attends_to_what_is_packed(name)


@of_each_method
def test_a_whole_prompt_is_as_ever(name: str) -> None:
    pieces.a_whole_prompt_is_as_ever(name)


@of_each_method
def test_rows_equal_rows_alone(name: str) -> None:
    pieces.rows_equal_rows_alone(name)


@of_each_method
def test_nothing_exact_is_kept(name: str) -> None:
    pieces.nothing_exact_is_kept(name)


@pytest.mark.parametrize("name", ["quantization_8bit", "kivi2", "kvquant3"])
def test_packed_entries_are_read_some_at_a_time(name: str) -> None:
    pieces.packed_entries_are_read_some_at_a_time(name)


@pytest.mark.parametrize("window", [0, 33])
def test_runs_are_attended_to_as_one(window: int) -> None:
    pieces.runs_are_attended_to_as_one(window)


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert {
        pieces.pieces_are_packed_as_a_whole,
        pieces.a_piece_attends_to_what_is_packed,
        pieces.a_whole_prompt_is_as_ever,
        pieces.rows_equal_rows_alone,
        pieces.nothing_exact_is_kept,
        pieces.packed_entries_are_read_some_at_a_time,
        pieces.runs_are_attended_to_as_one,
    } == seen_to_fail(MUTANTS)
