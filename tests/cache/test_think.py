"""Keys that keep the channels that a prompt's last queries ask for."""

from __future__ import annotations

import pytest

from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.mutants.think import MUTANTS
from tests.support import think
from tests.support.models import MAIN

on_main = pytest.mark.parametrize("model_name", MAIN)


@on_main
def test_logits_are_those_of_keys_with_holes(model_name: str) -> None:
    think.logits_are_those_of_keys_with_holes(model_name)


@pytest.mark.parametrize("method", ["snapkv", "adakv", "knorm", "kvzip"])
def test_selection_comes_before_channels(method: str) -> None:
    think.logits_are_those_of_keys_with_holes("llama_gqa", method)


@on_main
def test_channels_are_those_of_the_largest_products(model_name: str) -> None:
    think.channels_are_those_of_the_largest_products(model_name)


def test_padding_does_not_ask() -> None:
    think.padding_does_not_ask()


def test_channels_are_freed_to_the_byte() -> None:
    think.channels_are_freed_to_the_byte()


def test_the_latest_keys_are_whole() -> None:
    think.the_latest_keys_are_whole()


def test_a_step_copies_no_keys() -> None:
    think.a_step_copies_no_keys()


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert {
        think.logits_are_those_of_keys_with_holes,
        think.channels_are_those_of_the_largest_products,
        think.padding_does_not_ask,
        think.channels_are_freed_to_the_byte,
        think.the_latest_keys_are_whole,
        think.a_step_copies_no_keys,
    } == seen_to_fail(MUTANTS)
