"""Models whose KV heads become fewer: when they do not notice, what is held, and what is left of the original."""

from __future__ import annotations

import pytest

from tests.mutants.core_mutant import Check, Mutant, each_of, oracles_in, seen_to_fail
from tests.mutants.grouping import MUTANTS
from tests.support import grouping

each_kind = pytest.mark.parametrize("model", grouping.KINDS)
each_model = pytest.mark.parametrize("model", grouping.GROUPED)


@each_model
def test_as_many_groups_as_heads_change_nothing(model: str) -> None:
    grouping.as_many_groups_as_heads_change_nothing(model)


@each_kind
def test_heads_that_are_alike_become_one(model: str) -> None:
    grouping.heads_that_are_alike_become_one(model)


@each_kind
def test_heads_that_are_alike_but_turned_become_one(model: str) -> None:
    grouping.heads_that_are_alike_but_turned_become_one(model)


@pytest.mark.parametrize("model", ["llama_mha", "gpt2"])
def test_bytes_fall_with_the_heads(model: str) -> None:
    grouping.bytes_fall_with_the_heads(model)


@each_kind
def test_the_original_stays_as_it_is(model: str) -> None:
    grouping.the_original_stays_as_it_is(model)


@each_model
def test_shapes_are_known_before(model: str) -> None:
    grouping.shapes_are_known_before(model)


@each_kind
def test_it_goes_with_other_parts(model: str) -> None:
    grouping.it_goes_with_other_parts(model)


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert not oracles_in(grouping) - seen_to_fail(MUTANTS)
