"""Entries in coordinates: turned heads, scaled channels, directions of groups of heads."""

from __future__ import annotations

import pytest

from tests.mutants.coordinates import MUTANTS
from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.support import coordinates, sorting

on_both = pytest.mark.parametrize("model_name", ["llama_gqa", "gpt2"])  # whose keys turn, and whose do not
each_method = pytest.mark.parametrize(
    "name", ["quarot", "qoq_kv4", "palu", "eigen_attention", "turboquant3", "rotatekv", "skvq"]
)


@on_both
@each_method
def test_coordinates_alone_lose_nothing(name: str, model_name: str) -> None:
    coordinates.coordinates_alone_lose_nothing(name, model_name)


@on_both
@each_method
def test_coordinates_are_those_of_plain_products(name: str, model_name: str) -> None:
    coordinates.coordinates_are_those_of_plain_products(name, model_name)


@pytest.mark.parametrize("method", ["adakv", "h2o"])  # ragged at the end of the prompt, and a token per step
@each_method
def test_selection_composes_with_coordinates(name: str, method: str) -> None:
    overrides = ("codec.heads=1",) if name in ("palu", "rotatekv", "skvq") else ()
    coordinates.coordinates_are_those_of_plain_products(name, "llama_mha", method, overrides)


def test_bytes_are_those_of_the_numbers_and_one_rotation() -> None:
    coordinates.bytes_are_those_of_the_numbers_and_one_rotation()


@pytest.mark.parametrize("size", [1, 2, 8, 12, 64, 80, 96])
def test_a_matrix_spreads_every_channel(size: int) -> None:
    coordinates.a_matrix_spreads_every_channel(size)


@pytest.mark.parametrize("size", [64, 96, 128])
def test_a_rotation_spreads_what_stands_out(size: int) -> None:
    coordinates.a_rotation_spreads_what_stands_out(size)


def test_sorting_brings_like_channels_together() -> None:
    sorting.sorting_brings_like_channels_together()


def test_an_order_there_and_back_changes_nothing() -> None:
    sorting.an_order_there_and_back_changes_nothing()


def test_unsorted_and_unclipped_are_plain_codes() -> None:
    sorting.in_their_own_order_channels_are_plain_codes()


def test_short_scales_stay_within_their_bound() -> None:
    sorting.short_scales_stay_within_their_bound()


def test_clipped_codes_equal_plain_loops() -> None:
    coordinates.clipped_codes_equal_plain_loops()


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert {
        coordinates.coordinates_alone_lose_nothing,
        coordinates.coordinates_are_those_of_plain_products,
        coordinates.bytes_are_those_of_the_numbers_and_one_rotation,
        coordinates.a_matrix_spreads_every_channel,
        coordinates.a_rotation_spreads_what_stands_out,
        sorting.sorting_brings_like_channels_together,
        sorting.an_order_there_and_back_changes_nothing,
        sorting.in_their_own_order_channels_are_plain_codes,
        sorting.short_scales_stay_within_their_bound,
        coordinates.clipped_codes_equal_plain_loops,
    } == seen_to_fail(MUTANTS)
