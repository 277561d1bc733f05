"""A prompt is encoded once and forgotten, and blocks between the layers read its encoding."""

from __future__ import annotations

import pytest

from tests.mutants.core_mutant import Check, Mutant, each_of, oracles_in, seen_to_fail
from tests.mutants.crossing import MUTANTS
from tests.support import crossing
from tests.support.models import MAIN

CHUNKS, STEPS = crossing.CHUNKS, (5, 1, 4, 2)

each_model = pytest.mark.parametrize("name", MAIN)


@each_model
def test_blocks_that_add_nothing_leave_the_model_to_what_follows(name: str) -> None:
    crossing.blocks_that_add_nothing_leave_the_model_to_what_follows(name, (24, 24), steps=STEPS)
    crossing.blocks_that_add_nothing_leave_the_model_to_what_follows(name, (24, 17), chunks=CHUNKS)


@each_model
def test_context_is_read_as_by_plain_loops(name: str) -> None:
    crossing.context_is_read_as_by_plain_loops(name)


def test_context_is_read_as_by_plain_loops_of_fewer_numbers() -> None:
    crossing.context_is_read_as_by_plain_loops("llama_gqa", (), CHUNKS, STEPS)


@each_model
def test_without_a_context_nothing_is_added(name: str) -> None:
    crossing.without_a_context_nothing_is_added(name)


def test_keys_are_made_once() -> None:
    crossing.keys_are_made_once()


@pytest.mark.parametrize("overrides", [(), crossing.EVERY_LAYER])
def test_bytes_are_those_of_the_blocks(overrides: tuple[str, ...]) -> None:
    crossing.bytes_are_those_of_the_blocks("llama_gqa", *overrides)


def test_sizes_follow_the_ratio() -> None:
    crossing.sizes_follow_the_ratio()


@pytest.mark.parametrize("name", ["llama_gqa", "gpt2"])
def test_shapes_are_known_before(name: str) -> None:
    crossing.shapes_are_known_before(name)


def test_contexts_go_with_codecs() -> None:
    crossing.contexts_go_with_codecs("int8", 0.02)
    crossing.contexts_go_with_codecs("kivi4", 0.06, *crossing.SMALL)


def test_restore_goes_back_exactly() -> None:
    crossing.restore_goes_back_exactly()


@each_model
def test_what_is_trained_is_what_runs(name: str) -> None:
    crossing.what_is_trained_is_what_runs(name)


def test_blocks_stand_where_they_were_trained() -> None:
    crossing.blocks_stand_where_they_were_trained()
    crossing.what_is_trained_is_what_runs("llama_gqa", is_placed=True)


def test_trained_blocks_are_found() -> None:
    crossing.trained_blocks_are_found()


def test_untrained_blocks_are_asked_nothing() -> None:
    crossing.untrained_blocks_are_asked_nothing()


def test_only_blocks_are_trained() -> None:
    crossing.only_blocks_are_trained()


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert not oracles_in(crossing) - seen_to_fail(MUTANTS)
