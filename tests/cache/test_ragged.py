"""Heads that keep different numbers of entries, one behind the other."""

from __future__ import annotations

import pytest

from kvbench.kernels import compiling
from tests.mutants.core_mutant import Check, Mutant, each_of
from tests.mutants.ragged import MUTANTS
from tests.support import ragged

has_compiler = pytest.mark.skipif(compiling.compiler() is None, reason="no C++ compiler")


@pytest.mark.parametrize("name", ["adakv", "defensivekv", "headkv", "kvzip"])
@pytest.mark.parametrize("model_name", ["llama_gqa", "llama_mha"])
def test_heads_together_are_what_they_are_apart(name: str, model_name: str) -> None:
    ragged.equals_heads_apart(name, model_name)


def test_codes_of_all_heads_are_what_they_are_apart() -> None:
    ragged.equals_heads_apart("adakv", "llama_mha", "strategy/codec=int8")


@has_compiler
def test_compiled_code_reads_what_plain_torch_reads() -> None:
    ragged.native_is_the_reference("adakv", "llama_gqa")


@has_compiler
def test_a_step_costs_no_more_for_more_heads() -> None:
    ragged.steps_do_not_grow_with_heads("adakv")


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)
