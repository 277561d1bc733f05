"""SqueezeAttention: layers that attention changes least give to the others."""

from __future__ import annotations

import pytest

from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.mutants.squeezing import MUTANTS
from tests.support import squeezing

each_main_model = pytest.mark.parametrize("model", ["llama_gqa", "llama_mha", "gpt2"])


def test_layers_give_as_the_paper_says() -> None:
    squeezing.layers_give_as_the_paper_says()


@pytest.mark.parametrize("chunks", [(), (7, 1, 13, 3)])
@each_main_model
def test_similarity_equals_hidden_states(model: str, chunks: tuple[int, ...]) -> None:
    squeezing.similarity_equals_hidden_states(model, chunks)


def test_groups_are_the_best_three() -> None:
    squeezing.groups_are_the_best_three()


def test_a_share_of_one_is_h2o_bit_for_bit() -> None:
    squeezing.a_share_of_one_is_h2o_bit_for_bit()


@each_main_model
def test_layers_hold_their_share(model: str) -> None:
    squeezing.layers_hold_their_share(model)


def test_nothing_stays_behind() -> None:
    squeezing.nothing_stays_behind()


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    oracles = {
        squeezing.layers_give_as_the_paper_says,
        squeezing.similarity_equals_hidden_states,
        squeezing.groups_are_the_best_three,
        squeezing.a_share_of_one_is_h2o_bit_for_bit,
        squeezing.layers_hold_their_share,
        squeezing.nothing_stays_behind,
    }
    assert seen_to_fail(MUTANTS) == oracles
