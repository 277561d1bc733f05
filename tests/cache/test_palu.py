"""What is measured of keys and values, and what directions and scales are made of it."""

from __future__ import annotations

import pytest

from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.mutants.palu import MUTANTS
from tests.support import moments, palu
from tests.support.latents import network
from tests.support.models import MAIN

on_main = pytest.mark.parametrize("model_name", MAIN)


@on_main
def test_moments_are_those_of_the_numbers(model_name: str) -> None:
    moments.moments_are_those_of_the_numbers(network(model_name))


def test_gradients_are_those_of_nudges() -> None:
    moments.gradients_are_those_of_nudges(network("gpt2"))


def test_moments_are_kept_as_they_are() -> None:
    moments.moments_are_kept_as_they_are()


@on_main
def test_directions_are_those_of_the_whitened_weights(model_name: str) -> None:
    palu.directions_are_those_of_the_whitened_weights(model_name)


def test_whitening_loses_less() -> None:
    palu.whitening_loses_less()


@pytest.mark.parametrize("model_name", ["llama_mha", "gpt2"])
def test_errors_fall_with_the_directions_kept(model_name: str) -> None:
    palu.errors_fall_with_the_directions_kept(model_name)


def test_turned_directions_are_about_as_large() -> None:
    palu.turned_directions_are_about_as_large()


def test_shares_follow_the_gradients() -> None:
    palu.shares_follow_the_gradients()


def test_groups_have_their_own_directions() -> None:
    palu.groups_have_their_own_directions()


@on_main
def test_smoothing_keys_is_folding_scales_into_weights(model_name: str) -> None:
    palu.smoothing_keys_is_folding_scales_into_weights(model_name)


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert {
        moments.moments_are_those_of_the_numbers,
        moments.gradients_are_those_of_nudges,
        moments.moments_are_kept_as_they_are,
        palu.directions_are_those_of_the_whitened_weights,
        palu.whitening_loses_less,
        palu.errors_fall_with_the_directions_kept,
        palu.turned_directions_are_about_as_large,
        palu.shares_follow_the_gradients,
        palu.groups_have_their_own_directions,
        palu.smoothing_keys_is_folding_scales_into_weights,
    } == seen_to_fail(MUTANTS)
