"""fixed_size with its ring on the host: what leaves, what comes back, and where every byte is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.mutants.offloading import MUTANTS
from tests.support import fsdc, offloading
from tests.support.checks import PROMPT
from tests.support.offloading import LOW


@pytest.mark.parametrize(
    "overrides",
    [
        (LOW,),
        (LOW, "evicted.offload_size=5"),
        (LOW, "evicted.summary=true", "evicted.offload_size=9", "evicted.worker_threads=0"),
        (LOW, "scorer.importance_window=4", "evicted.restore_every=3", "evicted.max_restored=2"),
        ("evicted.restore_every=0", "evicted.summary=true", "evicted.offload_size=4"),
    ],
)
def test_offloading_equals_plain_loops(overrides: tuple[str, ...]) -> None:
    offloading.offloading_equals_plain_loops(*overrides)


def test_offloading_rows_of_a_padded_batch_equals_plain_loops() -> None:
    offloading.offloading_equals_plain_loops(LOW, "evicted.mmap=true", lengths=(PROMPT, 17, 20))


@pytest.mark.parametrize("overrides", [(), ("evicted.offload_size=11",), ("evicted.offload_size=2",)])
def test_every_position_is_on_the_device_in_the_ring_or_in_the_summary(overrides: tuple[str, ...]) -> None:
    offloading.every_position_is_somewhere_once(*overrides)


def test_an_entry_that_left_comes_back_bit_for_bit() -> None:
    offloading.rows_are_what_they_were("fixed_size_offload")


@pytest.mark.parametrize("name", ["fixed_size_int8", "fixed_size_int4"])
def test_a_row_that_was_packed_is_near_what_it_was(name: str) -> None:
    offloading.rows_are_what_they_were(name)


def test_the_ring_drops_first_in_first_out() -> None:
    offloading.a_ring_is_first_in_first_out()


def test_an_entry_that_mattered_comes_back() -> None:
    offloading.an_entry_that_mattered_comes_back()


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("fixed_size_offload", ()),
        ("fixed_size_offload", ("evicted.offload_size=10",)),
        ("fixed_size_int8", ()),
        ("fixed_size_all", ()),
    ],
)
def test_bytes_of_the_ring_are_their_closed_form(name: str, overrides: tuple[str, ...]) -> None:
    offloading.bytes_of_the_ring(name, *overrides)


def test_bytes_of_the_ring_of_a_text_of_unknown_length_are_their_closed_form() -> None:
    offloading.bytes_of_the_ring("fixed_size_int4", "evicted.offload_size=30", new=None)


def test_what_goes_down_does_not_depend_on_the_context() -> None:
    offloading.what_goes_down_does_not_depend_on_the_context()


def test_threads_change_nothing() -> None:
    offloading.threads_change_nothing()


@pytest.mark.parametrize("explicitly", [True, False])
def test_a_mapped_file_has_no_name_and_is_closed(explicitly: bool, tmp_path: Path) -> None:
    offloading.cleanup_ends_everything(tmp_path, explicitly=explicitly)


def test_a_full_disk_says_where(tmp_path: Path) -> None:
    offloading.no_room(tmp_path)


def test_the_environment_gives_way_to_a_strategy_and_that_to_the_command_line() -> None:
    fsdc.the_environment_gives_way()


@each_of(MUTANTS)
def test_mutants_are_caught(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


ORACLES: tuple[Callable[..., None], ...] = (
    offloading.offloading_equals_plain_loops,
    offloading.every_position_is_somewhere_once,
    offloading.rows_are_what_they_were,
    offloading.a_ring_is_first_in_first_out,
    offloading.an_entry_that_mattered_comes_back,
    offloading.bytes_of_the_ring,
    offloading.what_goes_down_does_not_depend_on_the_context,
    offloading.threads_change_nothing,
    fsdc.the_environment_gives_way,
)


def test_every_oracle_was_seen_to_fail() -> None:
    assert set(ORACLES) <= seen_to_fail(MUTANTS)
