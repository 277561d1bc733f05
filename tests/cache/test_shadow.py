"""ShadowKV: keys of low rank, chunks told apart by their means, and outliers that stay."""

from __future__ import annotations

import pytest

from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.mutants.shadow import MUTANTS
from tests.support import shadow

ORACLES = (
    shadow.equals_loops,
    shadow.all_of_full_rank_is_the_full_cache,
    shadow.keys_are_the_nearest_of_their_rank,
    shadow.landmarks_are_means,
    shadow.a_planted_chunk_is_read,
    shadow.planted_outliers_stay,
    shadow.chunks_are_kept_whole,
    shadow.only_values_move,
    shadow.bytes_lie_where_they_were_said_to,
    shadow.bytes_fall_as_claimed,
)


@pytest.mark.parametrize("model", ["gpt2", "llama_mha", "llama_gqa", "phi3"])
def test_shadowkv_equals_plain_loops(model: str) -> None:
    shadow.equals_loops(model)


def test_rows_have_chunks_and_directions_of_their_own() -> None:
    shadow.equals_loops("llama_gqa", lengths=(21, 24, 23))


def test_values_on_disk_are_the_same_values() -> None:
    shadow.equals_loops("llama_gqa", *shadow.ON_DISK)


@pytest.mark.parametrize("model", ["gpt2", "llama_gqa", "qwen3"])
def test_all_chunks_at_full_rank_are_the_full_cache(model: str) -> None:
    shadow.all_of_full_rank_is_the_full_cache(model)


@pytest.mark.parametrize("model", ["gpt2", "llama_gqa", "phi3"])
@pytest.mark.parametrize("rank", [1, 5])
def test_no_keys_of_their_rank_are_nearer(model: str, rank: int) -> None:
    shadow.keys_are_the_nearest_of_their_rank(model, rank)


def test_chunks_are_told_apart_by_their_means() -> None:
    shadow.landmarks_are_means()


def test_a_planted_chunk_is_read() -> None:
    shadow.a_planted_chunk_is_read()


def test_planted_outliers_stay() -> None:
    shadow.planted_outliers_stay()


def test_chunks_stay_or_leave_as_a_whole() -> None:
    shadow.chunks_are_kept_whole()


def test_only_values_move() -> None:
    shadow.only_values_move()


@pytest.mark.parametrize("where", [(), shadow.ON_DISK])
def test_bytes_of_coordinates_and_pages_are_as_said(where: tuple[str, ...]) -> None:
    shadow.bytes_lie_where_they_were_said_to(where)


def test_bytes_of_a_long_prompt_fall_as_claimed() -> None:
    shadow.bytes_fall_as_claimed()


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert set(ORACLES) - seen_to_fail(MUTANTS) == set()
