"""Slots in pages: what attention reads, what is held, and with what they go."""

from __future__ import annotations

import pytest
import torch

from tests.mutants.core_mutant import Check, Mutant, each_of, oracles_in, seen_to_fail
from tests.mutants.paging import MUTANTS
from tests.support import paging
from tests.support.checks import PROMPT


@pytest.mark.parametrize("size", [1, 4, 16, 128])
@pytest.mark.parametrize("model", ["llama_gqa", "llama_mha", "gpt2", "mistral"])
def test_pages_equal_slots_in_a_row(model: str, size: int) -> None:
    paging.pages_equal_slots_in_a_row(model, size)


@pytest.mark.parametrize("size", [1, 4, 16])
def test_so_they_do_where_rows_differ_or_come_in_pieces(size: int) -> None:
    paging.pages_equal_slots_in_a_row("llama_gqa", size, lengths=paging.RAGGED)
    paging.pages_equal_slots_in_a_row("gpt2", size, lengths=paging.RAGGED, chunks=(1, 10, PROMPT - 11), steps=(5, 1, 6))


@pytest.mark.parametrize("composed", paging.COMPOSED, ids=str)
def test_pages_go_with_selection_and_codecs(composed: tuple[str, ...]) -> None:
    paging.pages_equal_slots_in_a_row("llama_gqa", 4, *composed[1:], name=composed[0])
    paging.pages_equal_slots_in_a_row("llama_gqa", 5, *composed[1:], name=composed[0], lengths=(PROMPT, 17))


@pytest.mark.parametrize("size", [1, 4, 16])
def test_bytes_in_pages_are_the_closed_form(size: int) -> None:
    paging.bytes_in_pages_are_the_closed_form(size)


@pytest.mark.parametrize("name", ["h2o", "snapkv"])
@pytest.mark.parametrize("size", [4, 16])
def test_bytes_asked_for_are_not_exceeded(name: str, size: int) -> None:
    paging.bytes_asked_for_are_not_exceeded(name, size)


def test_pages_are_taken_when_they_are_needed() -> None:
    paging.pages_are_taken_when_they_are_needed()


def test_pages_of_a_row_are_neighbours() -> None:
    paging.pages_of_a_row_are_neighbours()


def test_pages_are_used_well() -> None:
    paging.pages_are_used_well()


@pytest.mark.parametrize("composed", [("baseline",), ("h2o",), ("baseline", "strategy/codec=int8")], ids=str)
def test_restoring_gives_pages_back(composed: tuple[str, ...]) -> None:
    paging.restoring_gives_pages_back(*composed)


def test_a_growing_cache_keeps_its_pages() -> None:
    paging.a_growing_cache_keeps_its_pages()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)], ids=str)
def test_the_native_kernel_reads_pages(dtype: torch.dtype, tolerance: float) -> None:
    paging.the_native_kernel_reads_pages(dtype, tolerance)


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert not oracles_in(paging) - seen_to_fail(MUTANTS)
