"""All heads of a token read one latent: what they say, what is held, and with what it goes."""

from __future__ import annotations

import pytest

from tests.mutants.core_mutant import Check, Mutant, each_of, oracles_in, seen_to_fail
from tests.mutants.mla import MUTANTS
from tests.support import mla

BOTH = ("llama_gqa", "gpt2")


@pytest.mark.parametrize("model", ["llama_gqa", "llama_mha", "gpt2", "phi3", "mistral"])
def test_full_rank_with_all_rotation_is_the_model(model: str) -> None:
    mla.full_rank_with_all_rotation_is_the_model(model)


@pytest.mark.parametrize("shares", [(1, 0.5), (0.5, 1), (0, 1), (0.25, 0.5)])
@pytest.mark.parametrize("model", ["llama_gqa", "llama_mha"])
def test_absorbed_equals_expanded(model: str, shares: tuple[float, float]) -> None:
    mla.absorbed_equals_expanded(model, *shares)


@pytest.mark.parametrize("model", BOTH)
def test_bytes_are_one_latent_and_its_rotation(model: str) -> None:
    mla.bytes_are_one_latent_and_its_rotation(model)


@pytest.mark.parametrize("model", BOTH)
def test_shapes_are_known_before(model: str) -> None:
    mla.shapes_are_known_before(model)


def test_latents_go_with_selection_and_codecs() -> None:
    mla.latents_go_with_selection("llama_gqa")
    mla.latents_go_with_codecs("llama_gqa")


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert not oracles_in(mla) - seen_to_fail(MUTANTS)
