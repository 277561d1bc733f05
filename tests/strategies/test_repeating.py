"""KVzip: entries that reading the prompt again needs, in one pool of all heads."""

from __future__ import annotations

import pytest

from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.mutants.repeating import MUTANTS
from tests.support import repeating

each_main_model = pytest.mark.parametrize("model", ["llama_gqa", "llama_mha", "gpt2"])


@pytest.mark.parametrize("chunks", [(), (7, 1, 13, 3)])
@each_main_model
def test_scores_equal_attention_to_the_repetition(model: str, chunks: tuple[int, ...]) -> None:
    repeating.scores_equal_attention_to_the_repetition(model, chunks)


@each_main_model
def test_one_pool_keeps_the_best_of_all_layers(model: str) -> None:
    repeating.one_pool_keeps_the_best_of_all_layers(model)


@each_main_model
def test_reading_again_changes_nothing_else(model: str) -> None:
    repeating.reading_again_changes_nothing_else(model)


def test_a_full_safeguard_keeps_heads_alike() -> None:
    repeating.a_full_safeguard_keeps_heads_alike()


def test_scores_are_weights() -> None:
    repeating.scores_are_weights()


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    oracles = {
        repeating.scores_equal_attention_to_the_repetition,
        repeating.one_pool_keeps_the_best_of_all_layers,
        repeating.reading_again_changes_nothing_else,
        repeating.a_full_safeguard_keeps_heads_alike,
        repeating.scores_are_weights,
    }
    assert seen_to_fail(MUTANTS) == oracles
