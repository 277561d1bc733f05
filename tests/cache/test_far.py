"""Entries that left a store, in pages that lie elsewhere."""

from __future__ import annotations

import pytest

from kvbench.cache.placement.levels import Policy
from tests.mutants.core_mutant import Check, Mutant, each_of, oracles_in, seen_to_fail
from tests.mutants.far import MUTANTS
from tests.support import far


@pytest.mark.parametrize("model", ["gpt2", "llama_mha", "llama_gqa"])
def test_what_is_read_equals_dense_attention_over_it(model: str) -> None:
    far.equals_loops(model)


def test_padded_rows_read_pages_of_their_own() -> None:
    far.equals_loops("llama_gqa", lengths=(20, 24, 17))


@pytest.mark.parametrize("model", ["gpt2", "llama_gqa"])
def test_wherever_pages_lie_logits_are_the_same(model: str) -> None:
    far.levels_change_nothing(model)


@pytest.mark.parametrize("model", ["gpt2", "llama_gqa"])
def test_every_entry_is_held_once(model: str) -> None:
    far.every_entry_is_held_once(model)


@pytest.mark.parametrize("name", ["h2o", "snapkv"])
def test_what_any_selection_lets_go_may_be_read_again(name: str) -> None:
    parts = ("strategy/evicted=tiers", "strategy/reader=pages", "reader.size=2", "reader.least_pages=1")
    far.every_entry_is_held_once("llama_gqa", name, *parts, "reader.skip_layers=[]")


@pytest.mark.parametrize("where", [(), far.ON_DISK, ("evicted.at_hand=1",)])
def test_pages_move_as_often_as_they_miss(where: tuple[str, ...]) -> None:
    far.pages_move_as_often_as_they_miss(where)


def test_a_link_takes_what_moved_and_waits_where_pages_miss() -> None:
    far.a_link_takes_what_moved_and_waits_where_pages_miss()


@pytest.mark.parametrize("where", [(), far.ON_DISK])
def test_bytes_lie_where_they_were_said_to(where: tuple[str, ...]) -> None:
    far.bytes_lie_where_they_were_said_to(where)


@pytest.mark.parametrize("policy", ["lru", "fifo"])
def test_frames_follow_their_policy(policy: Policy) -> None:
    far.frames_follow_their_policy(policy)


def test_pages_that_are_read_often_stay() -> None:
    far.often_read_pages_stay()


def test_forgotten_pages_leave_their_frames() -> None:
    far.forgotten_pages_leave_their_frames()


def test_cleanup_lets_go() -> None:
    far.cleanup_lets_go()


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert not oracles_in(far) - seen_to_fail(MUTANTS)
