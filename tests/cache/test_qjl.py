"""QJL: keys as signs of random projections, whose products with queries are right on average."""

from __future__ import annotations

import pytest

from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.mutants.qjl import MUTANTS
from tests.support import codecs, qjl


def test_signs_equal_plain_loops() -> None:
    qjl.signs_equal_plain_loops()


@pytest.mark.parametrize(("dim", "bits"), [(8, 1), (8, 8), (32, 2)])
def test_products_are_right_on_average(dim: int, bits: int) -> None:
    qjl.products_are_right_on_average(dim, bits)


def test_large_channels_do_not_drown_the_others() -> None:
    qjl.large_channels_do_not_drown_the_others()


def test_layers_have_directions_of_their_own() -> None:
    qjl.layers_have_directions_of_their_own()


def test_attention_equals_attention_to_what_the_signs_stand_for() -> None:
    for prompt in codecs.PROMPTS:
        qjl.equals_attention_to_what_the_signs_stand_for("llama_gqa", prompt=prompt)


def test_attention_without_rotation_equals_attention_to_what_the_signs_stand_for() -> None:
    qjl.equals_attention_to_what_the_signs_stand_for("gpt2")


def test_bytes_are_those_of_signs_and_lengths() -> None:
    qjl.bytes_are_those_of_signs_and_lengths()


def test_keys_of_many_channels_are_refused() -> None:
    qjl.keys_of_many_channels_are_refused()


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert {
        qjl.signs_equal_plain_loops,
        qjl.products_are_right_on_average,
        qjl.large_channels_do_not_drown_the_others,
        qjl.layers_have_directions_of_their_own,
        qjl.equals_attention_to_what_the_signs_stand_for,
        qjl.bytes_are_those_of_signs_and_lengths,
        qjl.keys_of_many_channels_are_refused,
    } <= seen_to_fail(MUTANTS)
