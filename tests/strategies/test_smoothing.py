"""Smoothed models in 8 bits: what they say, how they round, and what is left of the model they are made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.core_mutant import Check, Mutant, each_of, oracles_in, seen_to_fail
from tests.mutants.smoothing import MUTANTS
from tests.support import smoothing
from tests.support.models import MAIN
from tests.support.strategies import composed

each_model = pytest.mark.parametrize("model", MAIN)


@pytest.mark.parametrize("model", smoothing.SMOOTHABLE)
def test_folding_keeps_the_logits(model: str) -> None:
    smoothing.folding_keeps_the_logits(model)


@each_model
def test_what_is_measured_comes_out_of_the_norms(model: str) -> None:
    smoothing.what_is_measured_comes_out_of_the_norms(model)


@each_model
def test_half_and_half_equalises(model: str) -> None:
    smoothing.half_and_half_equalises(model)


@each_model
def test_smoothing_lowers_the_error_of_an_outlier(model: str) -> None:
    smoothing.smoothing_lowers_the_error_of_an_outlier(model)


def test_the_integer_layer_equals_plain_loops() -> None:
    smoothing.the_integer_layer_equals_plain_loops()


def test_products_are_exact() -> None:
    smoothing.products_are_exact()


@each_model
def test_the_original_stays_as_it_is(model: str) -> None:
    smoothing.the_original_stays_as_it_is(model)


@each_model
def test_bytes_of_weights_are_a_closed_form(model: str) -> None:
    smoothing.bytes_of_weights_are_a_closed_form(model)


def test_norms_are_told() -> None:
    smoothing.norms_are_told()


@pytest.mark.parametrize("name", ["smoothquant", "smoothquant_08"])
def test_loss_hardly_rises(name: str) -> None:
    smoothing.loss_hardly_rises(name)


def test_each_arm_has_its_own_weights() -> None:
    smoothing.each_arm_has_its_own_weights()


def test_weights_of_other_arms_are_let_go_of() -> None:
    smoothing.weights_of_other_arms_are_let_go_of()


def test_a_model_without_maxima_is_a_row(tmp_path: Path) -> None:
    smoothing.a_model_without_maxima_is_a_row(str(tmp_path))


def test_two_names_are_one_method() -> None:
    assert composed("smoothquant") == composed("smoothquant_05") != composed("smoothquant_08")


def test_a_smoothed_network_is_not_exact_whatever_the_cache() -> None:
    assert composed("baseline").fidelity == "exact"
    assert composed("baseline", "strategy/transform=smooth").fidelity == "lossy_training_free"


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert not oracles_in(smoothing) - seen_to_fail(MUTANTS)
