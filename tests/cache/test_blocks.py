"""Blocks of entries that left, read at clamped distances."""

from __future__ import annotations

import pytest

from tests.mutants.blocks import MUTANTS
from tests.mutants.core_mutant import Check, Mutant, each_of, oracles_in, seen_to_fail
from tests.support import blocks, far


@pytest.mark.parametrize("model", ["gpt2", "llama_mha", "llama_gqa"])
def test_clamped_blocks_equal_plain_loops(model: str) -> None:
    blocks.equals_loops(model)


def test_padded_rows_read_blocks_of_their_own() -> None:
    blocks.equals_loops("llama_gqa", (20, 24, 17))


def test_every_entry_is_held_once() -> None:
    far.every_entry_is_held_once("llama_gqa", "infllm")


def test_representatives_are_the_most_attended() -> None:
    blocks.representatives_are_the_most_attended()


def test_a_planted_key_comes_back() -> None:
    blocks.planted_key_comes_back()


def test_a_short_prompt_is_the_baseline() -> None:
    blocks.a_short_prompt_is_the_baseline()


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert not oracles_in(blocks) - seen_to_fail(MUTANTS)
