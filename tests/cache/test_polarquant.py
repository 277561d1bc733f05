"""PolarQuant: pairs of channels of keys as radii and angles, scored by a look-up table."""

from __future__ import annotations

import pytest

from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.mutants.polarquant import MUTANTS
from tests.support import codecs, polarquant


def test_polar_codes_equal_plain_loops() -> None:
    polarquant.polar_codes_equal_plain_loops()


def test_polar_errors_are_at_most_half_a_step() -> None:
    polarquant.polar_errors_are_at_most_half_a_step()


def test_where_angles_begin_does_not_matter() -> None:
    polarquant.where_angles_begin_does_not_matter()


@pytest.mark.parametrize(("group", "share"), [(8, 2), (32, 1), (40, 3)])
def test_looked_up_products_equal_dense_ones(group: int, share: int) -> None:
    polarquant.looked_up_products_equal_dense_ones(group, share)


def test_a_pair_is_what_is_rotated_together() -> None:
    polarquant.a_pair_is_what_is_rotated_together()


def test_attention_equals_attention_to_what_the_polar_codes_stand_for() -> None:
    for prompt in codecs.PROMPTS:
        polarquant.equals_attention_to_what_the_polar_codes_stand_for("llama_gqa", prompt=prompt)


def test_attention_without_rotation_equals_attention_to_what_the_polar_codes_stand_for() -> None:
    polarquant.equals_attention_to_what_the_polar_codes_stand_for("gpt2")


def test_polar_bytes_are_those_of_the_paper() -> None:
    polarquant.polar_bytes_are_those_of_the_paper()


def test_keys_of_odd_size_are_refused() -> None:
    polarquant.keys_of_odd_size_are_refused()


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert {
        polarquant.polar_codes_equal_plain_loops,
        polarquant.polar_errors_are_at_most_half_a_step,
        polarquant.where_angles_begin_does_not_matter,
        polarquant.looked_up_products_equal_dense_ones,
        polarquant.a_pair_is_what_is_rotated_together,
        polarquant.equals_attention_to_what_the_polar_codes_stand_for,
        polarquant.polar_bytes_are_those_of_the_paper,
        polarquant.keys_of_odd_size_are_refused,
    } <= seen_to_fail(MUTANTS)
