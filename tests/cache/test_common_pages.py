"""Pages that sequences share: pool, tree of prefixes, and what attention reads."""

from __future__ import annotations

import pytest

from tests.mutants.common_pages import MUTANTS
from tests.mutants.core_mutant import Check, Mutant, each_of, oracles_in, seen_to_fail
from tests.support import common_pages

BOTH = pytest.mark.parametrize(("name", "codec"), [("llama_gqa", "dense"), ("gpt2", "dense"), ("llama_mha", "int8")])


def test_pages_are_nobodys_or_somebodys() -> None:
    common_pages.pages_are_nobodys_or_somebodys()


@pytest.mark.parametrize("size", common_pages.TREE_SIZES)
def test_the_tree_knows_all_prefixes_and_where_they_lie(size: int) -> None:
    common_pages.the_tree_knows_all_prefixes_and_where_they_lie(size)


def test_least_recently_used_go_first() -> None:
    common_pages.least_recently_used_go_first()


@BOTH
def test_a_pass_reads_each_sequence_alone(name: str, codec: str) -> None:
    common_pages.a_pass_reads_each_sequence_alone(name, codec)


@BOTH
def test_a_fork_leaves_its_parent_as_it_is(name: str, codec: str) -> None:
    common_pages.a_fork_leaves_its_parent_as_it_is(name, codec)


@BOTH
def test_a_prefix_may_be_read_in_the_pass_that_stores_it(name: str, codec: str) -> None:
    common_pages.a_prefix_may_be_read_in_the_pass_that_stores_it(name, codec)


@pytest.mark.parametrize("codec", ["dense", "int8", "int4", "fp8"])
def test_pool_bytes_are_the_closed_form(codec: str) -> None:
    common_pages.pool_bytes_are_the_closed_form(codec)


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert not oracles_in(common_pages) - seen_to_fail(MUTANTS)
