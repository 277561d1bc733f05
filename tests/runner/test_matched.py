"""A recurrent network beside the model that it matches: who runs on what, reads what and is asked what."""

from __future__ import annotations

import pytest

from kvbench.configuration import check, compose
from kvbench.models.spec import ModelSpec
from kvbench.runner import job_of
from kvbench.sizing import network_of
from tests.mutants.core_mutant import Check, Mutant, each_of, oracles_in, seen_to_fail
from tests.mutants.matched import MUTANTS
from tests.support import matched


def test_arms_run_on_their_own_networks() -> None:
    matched.arms_run_on_their_own_networks()


def test_ids_are_of_each_vocabulary() -> None:
    matched.ids_are_of_each_vocabulary()


def test_quality_is_of_each_network_alone() -> None:
    matched.quality_is_of_each_network_alone()


def test_both_networks_have_to_fit() -> None:
    matched.both_networks_have_to_fit()


@pytest.mark.parametrize(
    ("model", "kind", "name"),
    [("tiny", "rwkv", "tiny-rwkv"), ("gpt2", "mamba", "mamba-130m"), ("gpt2-large", "rwkv", "rwkv-4-430m")],
)
def test_the_matched_model_is_loaded_as_the_model_is(model: str, kind: str, name: str) -> None:
    chosen = ["model.dtype=bfloat16", "model.device=cpu"]
    found = job_of(check(compose([f"strategy=non_transformer_{kind}", f"model={model}", *chosen]))).matched
    assert found is not None
    assert (found.name, found.dtype, found.device) == (name, "bfloat16", "cpu")


def test_a_model_that_names_none_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"model=gpt2-xl names no mamba network of its size; set model\.matched\.mamba="
    ):
        job_of(check(compose(["strategy=non_transformer_mamba", "model=gpt2-xl"])))


def test_nothing_is_planned_for_a_recurrent_model() -> None:
    spec: ModelSpec = check(compose(["model=tiny-mamba"])).model
    with pytest.raises(ValueError, match=r"model=tiny-mamba is recurrent and keeps nothing .* another model="):
        network_of(spec)


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert not oracles_in(matched) - seen_to_fail(MUTANTS)
