"""Half of the layers see a window, the others read one set of keys and values, and a prompt may stop between them."""

from __future__ import annotations

import pytest

from tests.mutants.core_mutant import Check, Mutant, each_of, oracles_in, seen_to_fail
from tests.mutants.yoco import MUTANTS
from tests.support import yoco


def test_yoco_equals_plain_loops() -> None:
    yoco.equals_plain_loops()
    yoco.equals_plain_loops(chunks=yoco.CHUNKS, steps=(5, 1, 4, 2))
    yoco.equals_plain_loops_with_the_stock_cache()


def test_a_window_above_the_length_is_no_window() -> None:
    yoco.a_window_above_the_length_is_no_window()


@pytest.mark.parametrize("asked", [1, 3])
@pytest.mark.parametrize("attend", ["sdpa", "eager"])
def test_a_prompt_may_stop_half_way(attend: str, asked: int) -> None:
    yoco.a_prompt_may_stop_half_way(attend, asked)


@pytest.mark.parametrize(
    ("lengths", "chunks", "codec"),
    [((24,), (), "dense"), ((24, 17), (7, 7, 7, 3), "dense"), ((24, 17), (), "int8")],
)
def test_a_prompt_may_stop_half_way_in_the_cache(lengths: tuple[int, ...], chunks: tuple[int, ...], codec: str) -> None:
    yoco.a_prompt_may_stop_half_way_in_the_cache(lengths, chunks, codec)


@pytest.mark.parametrize("asked", [("h2o",), ("kvpr",), yoco.THINK])
def test_what_looks_at_a_prompt_is_shown_all_of_it(asked: tuple[str, ...]) -> None:
    yoco.what_looks_at_a_prompt_is_shown_all_of_it(*asked)


def test_bytes_are_one_layers_and_windows() -> None:
    yoco.bytes_are_one_layers_and_windows()


def test_shapes_are_known_before() -> None:
    yoco.shapes_are_known_before()


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert not oracles_in(yoco) - seen_to_fail(MUTANTS)
