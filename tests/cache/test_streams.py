"""Streaming KVQuant: chunks whose scales follow the text."""

from __future__ import annotations

import pytest

from kvbench.kernels import compiling
from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.mutants.streams import MUTANTS
from tests.support import streams


def test_chunks_equal_plain_loops() -> None:
    streams.chunks_equal_plain_loops()


def test_keys_are_packed_as_they_were_before_rotation() -> None:
    streams.keys_are_packed_as_they_were_before_rotation()


def test_numbers_stay_within_their_bounds() -> None:
    streams.numbers_stay_within_their_bounds()


def test_one_chunk_is_the_largest_by_channel() -> None:
    streams.one_chunk_is_the_largest_by_channel()


def test_what_does_not_change_has_no_outliers() -> None:
    streams.what_does_not_change_has_no_outliers()


def test_bytes_count_the_outliers_there_are() -> None:
    streams.bytes_count_the_outliers_there_are()


def test_attention_reads_what_is_held() -> None:
    streams.attention_reads_what_is_held()


@pytest.mark.skipif(compiling.compiler() is None, reason="no C++ compiler")
def test_native_attention_reads_what_is_held() -> None:
    streams.attention_reads_what_is_held("native")


@pytest.mark.parametrize("rotary", [0, 24])
def test_a_step_needs_little_room(rotary: int) -> None:
    streams.a_step_needs_little_room("reference", rotary)


@pytest.mark.skipif(compiling.compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("rotary", [0, 24])
def test_a_native_step_needs_little_room(rotary: int) -> None:
    streams.a_step_needs_little_room("native", rotary)


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert {
        streams.chunks_equal_plain_loops,
        streams.keys_are_packed_as_they_were_before_rotation,
        streams.numbers_stay_within_their_bounds,
        streams.one_chunk_is_the_largest_by_channel,
        streams.what_does_not_change_has_no_outliers,
        streams.bytes_count_the_outliers_there_are,
        streams.attention_reads_what_is_held,
        streams.a_step_needs_little_room,
    } == seen_to_fail(MUTANTS)
