"""Packed entries: what is kept of them, that it is kept once, and that attention reads what the codes stand for."""

from __future__ import annotations

import pytest

from tests.mutants.codecs import MUTANTS
from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.support import codecs
from tests.support.codecs import QUANTISED
from tests.support.strategies import strategy

GATHERED = ("polarquant", "qjl")  # keys that are packed in ways of their own
each_method = pytest.mark.parametrize("name", QUANTISED)
each_packed = pytest.mark.parametrize("name", [*QUANTISED, *GATHERED])
each_written = pytest.mark.parametrize("name", [*QUANTISED, *GATHERED, "gear"])


def test_packing_keeps_every_code() -> None:
    codecs.packing_keeps_every_code()


def test_codes_equal_plain_loops() -> None:
    codecs.codes_equal_plain_loops()


def test_rounding_stays_within_its_bound() -> None:
    codecs.rounding_stays_within_its_bound()


def test_later_tokens_do_not_overflow() -> None:
    codecs.later_tokens_do_not_overflow()


def test_keys_with_a_large_channel_want_scales_by_channel() -> None:
    codecs.keys_with_a_large_channel_want_scales_by_channel()


def test_parts_lie_in_order() -> None:
    codecs.parts_lie_in_order()


@each_method
def test_attention_equals_attention_to_what_the_codes_stand_for(name: str) -> None:
    for prompt in codecs.PROMPTS if name.startswith("kivi") else (24,):
        codecs.equals_attention_to_what_the_codes_stand_for(name, "llama_gqa", prompt=prompt)


@pytest.mark.parametrize("name", ["quantization_8bit", "kivi2"])
def test_attention_without_rotation_equals_attention_to_what_the_codes_stand_for(name: str) -> None:
    codecs.equals_attention_to_what_the_codes_stand_for(name, "gpt2")


@each_written
def test_a_token_is_packed_once(name: str) -> None:
    codecs.a_token_is_packed_once(name)


@pytest.mark.parametrize("name", ["kivi2", "kivi4", *GATHERED, "gear"])
def test_kivi_keeps_the_latest_tokens_exact(name: str) -> None:
    codecs.the_latest_tokens_are_exact(name)


@each_packed
def test_bytes_are_counted_to_the_last(name: str) -> None:
    codecs.bytes_are_counted_to_the_last(name)


@each_written
def test_a_step_needs_little_room(name: str) -> None:
    codecs.a_step_needs_little_room(name, "reference")


@pytest.mark.parametrize("name", ["quantization_8bit", "quantization_4bit", "fp8"])
def test_errors_are_those_of_plain_loops(name: str) -> None:
    codecs.errors_are_those_of_plain_loops(name)


def test_shares_are_counted() -> None:
    codecs.shares_are_counted()


@pytest.mark.parametrize("codec", ["int8", "int4", "fp8", "kivi2"])
def test_selection_composes_with_codecs(codec: str) -> None:
    codecs.selection_composes_with_codecs(codec)


def test_sliding_layers_are_dense_where_tokens_are_packed_together() -> None:
    codecs.sliding_layers_are_dense_where_tokens_are_packed_together()


def test_two_names_are_one_method() -> None:
    assert strategy("quantization") == strategy("quantization_8bit")


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    oracles = {
        value
        for value in vars(codecs).values()
        if getattr(value, "__module__", None) == codecs.__name__
        and (getattr(value, "__doc__", None) or "").endswith(".")
        and getattr(value, "__annotations__", {}).get("return") == "None"
        and not isinstance(value, type)
    }
    of_kernels = {
        codecs.products_equal_dense_ones,
        codecs.both_kernels_keep_the_same,
    }  # in tests/kernels/test_packed.py
    assert oracles - seen_to_fail(MUTANTS) == of_kernels
