"""Weights lie as they are read soonest, and those that read the same tokens become one product."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kvbench.models.load import load
from tests.mutants.core_mutant import Check, Mutant, each_of
from tests.mutants.laying import MUTANTS
from tests.support import laying as checks
from tests.support.small import spec


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_no_number_changes(tie: bool, bias: bool) -> None:
    checks.no_number_changes(tie, bias)


def test_wide_layers_lie_by_columns() -> None:
    checks.wide_layers_lie_by_columns()
    checks.tied_weights_lie_by_rows()
    checks.other_kinds_stay_as_they_are()


def test_whoever_looks_at_weights_keeps_no_copy() -> None:
    checks.whoever_looks_keeps_no_copy()


@pytest.mark.parametrize("bias", [False, True])
def test_one_token_is_two_products_a_layer(bias: bool) -> None:
    checks.one_token_is_two_products_a_layer(bias)


def test_each_layer_multiplies_what_it_is_given() -> None:
    checks.each_multiplies_what_it_is_given()


def test_models_are_laid_out_as_they_are_loaded_and_saved_in_rows(tmp_path: Path) -> None:
    loaded = load(spec(), seed=0, attention="sdpa").model
    assert loaded.get_parameter("model.layers.0.self_attn.k_proj.weight").storage_offset() > 0
    assert loaded.get_parameter("lm_head.weight").t().is_contiguous()
    rows = load(spec(), seed=0, attention="sdpa", in_rows=True).model
    assert all(each.is_contiguous() for each in rows.parameters())
    rows.save_pretrained(tmp_path)  # type: ignore[operator]
    again = load(spec(path=str(tmp_path), architecture={}), seed=0, attention="sdpa").model
    for one, other in zip(loaded.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


@each_of(MUTANTS)
def test_checks_fail_on_what_is_broken(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)
