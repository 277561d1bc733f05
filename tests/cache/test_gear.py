"""GEAR: codes, outliers and corrections add up, and each of them is there for something."""

from __future__ import annotations

import pytest

from kvbench.kernels import compiling
from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.mutants.gear import MUTANTS
from tests.support import codecs, gear

needs_compiler = pytest.mark.skipif(compiling.compiler() is None, reason="no C++ compiler")


def test_codes_and_outliers_equal_plain_loops() -> None:
    gear.codes_and_outliers_equal_plain_loops()


def test_each_piece_loses_no_more_than_fewer() -> None:
    gear.each_piece_loses_no_more_than_fewer()


def test_at_full_rank_nothing_is_lost() -> None:
    gear.at_full_rank_nothing_is_lost()


def test_corrections_are_nearly_the_best() -> None:
    gear.corrections_are_nearly_the_best()


def test_products_equal_dense_ones() -> None:
    gear.products_equal_dense_ones()


@needs_compiler
def test_native_products_equal_dense_ones() -> None:
    gear.products_equal_dense_ones("native")


def test_what_is_read_is_codes_and_products() -> None:
    gear.what_is_read_is_codes_and_products()


def test_blocks_are_written_once() -> None:
    gear.blocks_are_written_once()


def test_bytes_are_those_of_every_piece() -> None:
    gear.bytes_are_those_of_every_piece()


def test_bytes_are_those_of_the_paper() -> None:
    gear.bytes_are_those_of_the_paper()


def test_a_budget_in_bytes_is_kept() -> None:
    gear.a_budget_in_bytes_is_kept()


@needs_compiler
def test_a_native_step_needs_little_room() -> None:
    codecs.a_step_needs_little_room("gear", "native")


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert {
        gear.codes_and_outliers_equal_plain_loops,
        gear.each_piece_loses_no_more_than_fewer,
        gear.at_full_rank_nothing_is_lost,
        gear.corrections_are_nearly_the_best,
        gear.products_equal_dense_ones,
        gear.what_is_read_is_codes_and_products,
        gear.blocks_are_written_once,
        gear.bytes_are_those_of_every_piece,
        gear.bytes_are_those_of_the_paper,
        gear.a_budget_in_bytes_is_kept,
    } <= seen_to_fail(MUTANTS)
