"""Kernels against dense attention in float64."""

from __future__ import annotations

import pytest

from tests.support import parts


def test_one_query_over_tiles_equals_dense_attention() -> None:
    parts.one_query_over_tiles_equals_dense()


def test_parts_attended_to_elsewhere_merge_to_the_whole() -> None:
    parts.parts_merge_to_the_whole()


def test_a_log_weight_counts_copies() -> None:
    parts.log_weight_counts_copies()


@pytest.mark.parametrize("window", [0, 13])
def test_blocks_of_a_prompt_equal_dense_attention(window: int) -> None:
    parts.prompt_blocks_equal_dense(window)


@pytest.mark.parametrize("window", [0, 13])
def test_column_sums_equal_those_of_the_dense_matrix(window: int) -> None:
    parts.column_sums_equal_dense(window)


def test_sums_are_not_rounded_to_the_models_dtype() -> None:
    parts.sums_are_not_rounded_to_the_model()


def test_no_matrix_of_queries_times_entries_is_made() -> None:
    parts.no_square_matrix()


def test_turning_a_key_is_writing_it_later() -> None:
    parts.turning_adds_rotations()
