"""KVTuner: bits by layer."""

from __future__ import annotations

import pytest

from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.mutants.tuned import MUTANTS
from tests.support import tuned
from tests.support.models import MAIN


def test_sharing_out_is_the_best_there_is() -> None:
    tuned.sharing_out_is_the_best_there_is()


def test_layers_hold_their_own_bits() -> None:
    tuned.layers_hold_their_own_bits()


@pytest.mark.parametrize("model_name", MAIN)
def test_errors_equal_plain_loops(model_name: str) -> None:
    tuned.errors_equal_plain_loops(model_name)


def test_tuned_bits_lose_less_than_the_same_everywhere() -> None:
    tuned.tuned_bits_lose_less_than_the_same_everywhere()


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    oracles = {
        tuned.sharing_out_is_the_best_there_is,
        tuned.layers_hold_their_own_bits,
        tuned.errors_equal_plain_loops,
        tuned.tuned_bits_lose_less_than_the_same_everywhere,
    }
    assert oracles == seen_to_fail(MUTANTS)
