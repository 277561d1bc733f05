"""Layers that read the keys and values of another: what they say, and what is held."""

from __future__ import annotations

import pytest

from kvbench.models.view import view_of
from kvbench.types import RunShape
from tests.mutants.core_mutant import Check, Mutant, each_of, oracles_in, seen_to_fail
from tests.mutants.sharing import MUTANTS
from tests.support import sharing
from tests.support.strategies import composed

each_model = pytest.mark.parametrize("model", ["llama_gqa", "llama_mha"])


@each_model
def test_shared_entries_are_those_of_the_donor(model: str) -> None:
    sharing.shared_entries_are_those_of_the_donor(model)
    sharing.shared_entries_are_those_of_the_donor(model, chunks=(7, 1, 13, 3), steps=(5, 1, 4, 2))


@each_model
def test_a_group_of_one_changes_nothing(model: str) -> None:
    sharing.a_group_of_one_changes_nothing(model)


@each_model
def test_bytes_fall_with_the_layers_that_store(model: str) -> None:
    sharing.bytes_fall_with_the_layers_that_store(model)


@each_model
def test_packed_entries_are_read_by_all(model: str) -> None:
    sharing.packed_entries_are_read_by_all(model)


def test_what_is_handed_on_does_not_outlive_the_pass() -> None:
    sharing.what_is_handed_on_does_not_outlive_the_pass("llama_gqa")


def test_shapes_are_known_before() -> None:
    sharing.shapes_are_known_before("llama_gqa")


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("h2o", "strategy/budget=all"),
        ("quest", "strategy/reader=all"),
        ("minicache", "strategy/layout=separate"),
        ("offload", "strategy/placement=device"),
    ],
)
def test_what_does_not_go_with_it_is_refused(name: str, want: str) -> None:
    view = view_of(sharing.shared("llama_gqa"))
    reason = composed(name).unsupported(view, RunShape(prompt_lengths=(64,), new_tokens=4))
    assert reason is not None
    assert reason.endswith(f"use {want}")


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert not oracles_in(sharing) - seen_to_fail(MUTANTS)
