"""Entries on the host and on disk: nothing but where they lie differs, and every byte is counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.mutants.placement import MUTANTS
from tests.support import placement
from tests.support.checks import PROMPT
from tests.support.models import MAIN
from tests.support.placement import THIRDS

ORACLES = (
    placement.same_as_resident,
    placement.survivors_same_as_resident,
    placement.made_again_equals_the_full_cache,
    placement.moves_what_the_formula_says,
    placement.bytes_lie_where_they_were_said_to,
    placement.nothing_packed_is_nothing_elsewhere,
    placement.shares_are_exact,
    placement.a_restored_cache_decodes_the_same,
    placement.a_link_is_modelled_beside_what_is_measured,
    placement.waits_are_as_long_as_fetches_that_nobody_made_ahead,
    placement.locked_bytes_are_those_the_system_says_are_locked,
)

SPLIT = ("split", THIRDS)  # some on the host, some on disk
TIERS = (("host", ()), ("disk", ()), SPLIT, ("split", (*THIRDS, "placement.axis=batch")))
CODECS = ("int8", "flexgen_int4", "kivi4", "lorc", "fp8", "think", "turboquant4")

each_tier = pytest.mark.parametrize(("where", "overrides"), TIERS)


@pytest.mark.parametrize(
    ("name", "ahead"), [(name, ahead) for name in MAIN for ahead in (0, 1, 3) if name == "llama_gqa" or ahead == 1]
)
@each_tier
def test_outputs_are_those_of_a_cache_on_the_device_bit_for_bit(
    where: str, overrides: tuple[str, ...], name: str, ahead: int
) -> None:
    placement.same_as_resident(
        name, where, *overrides, f"placement.prefetch={ahead}", lengths=(PROMPT, 17, PROMPT) if ahead else (PROMPT,) * 3
    )


@pytest.mark.parametrize(
    ("where", "overrides", "codec"),
    [(*tier, codec) for tier in TIERS for codec in CODECS if tier == SPLIT or codec in ("int8", "kivi4")],
)
def test_packed_entries_come_back_as_they_went(where: str, overrides: tuple[str, ...], codec: str) -> None:
    placement.same_as_resident("llama_gqa", where, *overrides, codec=codec, lengths=(PROMPT,) * 3)


@pytest.mark.parametrize("codec", ["int8", "kivi4", "fp8"])
def test_the_native_kernel_reads_what_came(codec: str) -> None:
    placement.same_as_resident("llama_gqa", "host", "placement.prefetch=0", codec=codec, dtype=torch.float32)


@each_tier
def test_a_prompt_in_pieces_is_kept_piece_by_piece(where: str, overrides: tuple[str, ...]) -> None:
    placement.same_as_resident("llama_gqa", where, *overrides, chunks=(10, 3, 11))


@pytest.mark.parametrize("codec", ["dense", "int8", "kivi4"])
@each_tier
def test_survivors_lie_elsewhere(where: str, overrides: tuple[str, ...], codec: str) -> None:
    overrides = tuple(text for text in overrides if "axis" not in text)
    placement.survivors_same_as_resident("llama_gqa", where, *overrides, codec=codec)


@pytest.mark.parametrize("amount", ["1", "17", str(PROMPT), "0.5"])
@pytest.mark.parametrize("name", MAIN)
def test_what_is_made_again_is_what_the_model_made(name: str, amount: str) -> None:
    placement.made_again_equals_the_full_cache(name, amount)
    placement.made_again_equals_the_full_cache(name, amount, "placement.stages=3", lengths=(PROMPT, 17, 9))


def test_what_is_made_again_of_a_prompt_in_pieces() -> None:
    placement.made_again_equals_the_full_cache("llama_gqa", "17", "placement.disk=1.0", "placement.host=0.0")
    placement.made_again_equals_the_full_cache("llama_gqa", "17", chunks=(10, 3, 11))


@pytest.mark.parametrize("codec", ["dense", "int8", "flexgen_int4"])
@each_tier
def test_bytes_moved_equal_the_formula(where: str, overrides: tuple[str, ...], codec: str) -> None:
    placement.moves_what_the_formula_says(where, *overrides, codec=codec, rows=4)


def test_what_is_made_again_moves_as_what_it_is_made_of() -> None:
    placement.moves_what_the_formula_says("recompute", "placement.recompute=10", rows=2)


@pytest.mark.parametrize("codec", ["dense", "int8", "kivi4"])
@each_tier
def test_every_byte_lies_where_it_was_said_to(where: str, overrides: tuple[str, ...], codec: str) -> None:
    placement.bytes_lie_where_they_were_said_to(where, *overrides, codec=codec)


@each_tier
def test_nothing_packed_is_nothing_elsewhere(where: str, overrides: tuple[str, ...]) -> None:
    placement.nothing_packed_is_nothing_elsewhere(where, *overrides)


def test_shares_are_exact() -> None:
    placement.shares_are_exact()


@pytest.mark.parametrize("codec", ["dense", "kivi4"])
@each_tier
def test_a_restored_cache_decodes_the_same(where: str, overrides: tuple[str, ...], codec: str) -> None:
    placement.a_restored_cache_decodes_the_same(where, *overrides, codec=codec)


def test_auto_makes_again_what_takes_the_least_time(tmp_path: Path) -> None:
    placement.auto_makes_again_what_takes_least(tmp_path)


def test_a_link_is_modelled_beside_what_is_measured() -> None:
    placement.a_link_is_modelled_beside_what_is_measured()


def test_waits_are_as_long_as_fetches_that_nobody_made_ahead() -> None:
    placement.waits_are_as_long_as_fetches_that_nobody_made_ahead()


def test_locked_bytes_are_those_the_system_says_are_locked() -> None:
    placement.locked_bytes_are_those_the_system_says_are_locked()


def test_a_full_disk_is_an_error_that_says_where(tmp_path: Path) -> None:
    placement.a_full_disk_says_where(tmp_path)


def test_files_have_no_name_and_are_closed(tmp_path: Path) -> None:
    placement.files_have_no_name_and_are_closed(tmp_path)


@each_of(MUTANTS)
def test_oracles_fail_on_what_is_broken(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_was_seen_to_fail() -> None:
    assert set(ORACLES) <= seen_to_fail(MUTANTS)
