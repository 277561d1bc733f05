"""Blocks are trained for a frozen model on contexts that they alone read."""

from __future__ import annotations

import pytest

from tests.mutants.core_mutant import Check, Mutant, each_of, oracles_in, seen_to_fail
from tests.mutants.crossing_training import MUTANTS
from tests.support import crossing_training


def test_what_is_asked_stands_in_the_context() -> None:
    crossing_training.what_is_asked_stands_in_the_context()


def test_a_block_begins_as_the_layer_behind_it() -> None:
    crossing_training.a_block_begins_as_the_layer_behind_it()


def test_training_goes_on_exactly() -> None:
    crossing_training.training_goes_on_exactly()


def test_training_lowers_the_loss_of_a_frozen_model() -> None:
    crossing_training.training_lowers_the_loss_of_a_frozen_model()


def test_answers_are_scored_behind_their_context() -> None:
    crossing_training.answers_are_scored_behind_their_context()


@pytest.mark.parametrize("member", crossing_training.shipped())
def test_what_is_shipped_is_what_its_card_says(member: str) -> None:
    crossing_training.what_is_shipped_is_what_its_card_says(member)


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    seen = seen_to_fail(MUTANTS) | {crossing_training.what_is_shipped_is_what_its_card_says}  # where any is shipped
    assert not oracles_in(crossing_training) - seen
