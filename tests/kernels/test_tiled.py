"""Attention tile by tile: what it says, what it counts, and the page that shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import flash_attention
from kvbench.kernels.attend.tiled import Tiling
from tests.mutants.core_mutant import Check, Mutant, each_of, oracles_in, seen_to_fail
from tests.mutants.tiled import MUTANTS
from tests.support import tiled

ROOT = Path(__file__).parents[2]
TILES = [(1, 1), (3, 5), (16, 16), (64, 7), (100, 100)]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_any_tile_gives_the_softmax(tile: tuple[int, int], is_causal: bool) -> None:
    tiled.any_tile_gives_the_softmax(Tiling(rows=tile[0], columns=tile[1], is_causal=is_causal))


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_bytes_counted_are_the_formula(tile: tuple[int, int], is_causal: bool) -> None:
    tiled.bytes_counted_are_the_formula(Tiling(rows=tile[0], columns=tile[1], is_causal=is_causal))


def test_a_query_that_sees_nothing_says_nothing() -> None:
    tiled.a_query_that_sees_nothing_says_nothing()


def test_the_page_shows_what_the_benchmark_prints() -> None:
    assert "\n".join(flash_attention.lines()) in (ROOT / "docs" / "flash_attention.md").read_text("utf-8")


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert not oracles_in(tiled) - seen_to_fail(MUTANTS)
