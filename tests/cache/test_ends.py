"""The first entries and the latest as the model made them."""

from __future__ import annotations

import pytest

from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.mutants.ends import MUTANTS
from tests.support import ends


def test_the_first_and_the_latest_are_exact() -> None:
    ends.the_first_and_the_latest_are_exact()


def test_a_token_leaves_the_window_once() -> None:
    ends.a_token_is_written_once()


def test_bytes_are_those_of_codes_and_exact_entries() -> None:
    ends.bytes_are_those_of_codes_and_exact_entries()


def test_attention_to_both_ends_is_that_on_what_is_read() -> None:
    ends.attention_is_that_on_what_is_read()


def test_what_came_later_can_be_taken_back() -> None:
    ends.what_came_later_can_be_taken_back()


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert {
        ends.the_first_and_the_latest_are_exact,
        ends.a_token_is_written_once,
        ends.bytes_are_those_of_codes_and_exact_entries,
        ends.attention_is_that_on_what_is_read,
        ends.what_came_later_can_be_taken_back,
    } == seen_to_fail(MUTANTS)
