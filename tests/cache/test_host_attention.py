"""Entries in the host's memory, attended to there: the same outputs, and only queries and answers move."""

from __future__ import annotations

import pytest

from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.mutants.host_attention import MUTANTS
from tests.support import host_attention, placement
from tests.support.checks import PROMPT
from tests.support.host_attention import RAGGED
from tests.support.models import MAIN

ORACLES = (
    host_attention.same_as_resident,
    host_attention.grown_equals_resident,
    host_attention.moves_what_the_formula_says,
    host_attention.bytes_lie_where_they_were_said_to,
    host_attention.a_link_is_passed_both_ways,
    host_attention.native_is_as_near_as_resident,
)

ALL, THIRD, ROWS = "placement.host=1.0", "placement.host=0.34", "placement.axis=batch"

THREE = (PROMPT,) * 3

each_share = pytest.mark.parametrize("where", [(ALL,), (THIRD,), (ALL, ROWS), (THIRD, ROWS)])


@pytest.mark.parametrize("name", MAIN)
@each_share
def test_outputs_are_those_of_a_cache_on_the_device(where: tuple[str, ...], name: str) -> None:
    host_attention.same_as_resident(name, *where, lengths=RAGGED)
    if ROWS not in where:
        host_attention.same_as_resident(name, *where)


@each_share
def test_prompts_in_pieces_and_several_tokens_at_once(where: tuple[str, ...]) -> None:
    host_attention.same_as_resident("llama_gqa", *where, lengths=RAGGED, chunks=(10, 3, 11), steps=(1, 5, 4, 2))


@pytest.mark.parametrize("name", ["snapkv", "adakv", "knorm"])  # heads apart in adakv
@pytest.mark.parametrize("share", [THIRD, "placement.host=0.7"])
def test_what_is_left_at_a_prompts_end(share: str, name: str) -> None:
    host_attention.same_as_resident("llama_gqa", share, name=name, lengths=(PROMPT, 9, 17))


@each_share
def test_growing(where: tuple[str, ...]) -> None:
    host_attention.grown_equals_resident(*where)


@pytest.mark.parametrize("prompt", [PROMPT, 2 * PROMPT])
@each_share
def test_only_queries_answers_and_new_tokens_move(where: tuple[str, ...], prompt: int) -> None:
    host_attention.moves_what_the_formula_says(*where, prompt=prompt)


@pytest.mark.parametrize("name", ["baseline", "snapkv", "knorm"])
@each_share
def test_every_byte_lies_where_it_was_said_to(where: tuple[str, ...], name: str) -> None:
    host_attention.bytes_lie_where_they_were_said_to(*where, name=name)


@each_share
def test_a_restored_cache_decodes_the_same(where: tuple[str, ...]) -> None:
    placement.a_restored_cache_decodes_the_same("split", *where, "placement.attend=host")


each_packed = pytest.mark.parametrize(("codec", "where"), [("int8", (THIRD,)), ("kivi4", (THIRD, ROWS))])


@pytest.mark.parametrize(
    ("codec", "where"),
    [("int8", (THIRD,)), ("flexgen_int4", (ALL,)), ("kivi4", (THIRD, ROWS))],
)
def test_packed_entries_are_attended_to_where_they_are_packed(codec: str, where: tuple[str, ...]) -> None:
    host_attention.same_as_resident("llama_gqa", *where, codec=codec, lengths=THREE)


def test_packed_entries_that_snapkv_leaves_of_rows_of_different_lengths() -> None:
    host_attention.same_as_resident("llama_gqa", THIRD, name="snapkv", codec="int8", lengths=RAGGED)


@each_packed
def test_packed_entries_are_divided_as_they_are_packed(codec: str, where: tuple[str, ...]) -> None:
    host_attention.grown_equals_resident(*where, codec=codec, lengths=THREE)
    host_attention.bytes_lie_where_they_were_said_to(*where, codec=codec)
    host_attention.moves_what_the_formula_says(*where, codec=codec)
    placement.a_restored_cache_decodes_the_same("split", *where, "placement.attend=host", codec=codec)


@each_packed
def test_the_native_kernel_reads_both_halves(codec: str, where: tuple[str, ...]) -> None:
    host_attention.native_is_as_near_as_resident(*where, codec=codec)


def test_a_link_is_passed_both_ways() -> None:
    host_attention.a_link_is_passed_both_ways()


@each_of(MUTANTS)
def test_oracles_fail_on_what_is_broken(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_was_seen_to_fail() -> None:
    assert set(ORACLES) <= seen_to_fail(MUTANTS)
