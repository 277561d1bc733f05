"""A recurrent network beside the model that it matches: who runs on what, reads what and is asked what."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files

import pytest
from omegaconf import OmegaConf

from kvbench.configuration import check, compose
from kvbench.models.spec import ModelSpec
from kvbench.runner import job_of
from kvbench.sizing import network_of
from tests.mutants.core_mutant import Check, Mutant, each_of, oracles_in, seen_to_fail
from tests.mutants.matched import MUTANTS
from tests.support import matched
from tests.support.family import shipped
from tests.support.small import spec


def test_arms_run_on_their_own_networks() -> None:
    matched.arms_run_on_their_own_networks()


def test_ids_are_of_each_vocabulary() -> None:
    matched.ids_are_of_each_vocabulary()


def test_quality_is_of_each_network_alone() -> None:
    matched.quality_is_of_each_network_alone()


def test_bytes_are_of_the_other_network() -> None:
    matched.bytes_are_of_the_other_network()


def test_a_strategy_runs_on_the_other_network() -> None:
    matched.a_strategy_runs_on_the_other_network()


def test_both_networks_have_to_fit() -> None:
    matched.both_networks_have_to_fit()


@pytest.mark.parametrize(
    ("model", "kind", "name"),
    [("tiny", "rwkv", "tiny-rwkv"), ("gpt2", "mamba", "mamba-130m"), ("gpt2-xl", "rwkv", "rwkv-4-1b5")],
)
def test_the_matched_model_is_loaded_as_the_model_is(model: str, kind: str, name: str) -> None:
    chosen = ["model.dtype=bfloat16", "model.device=cpu"]
    found = job_of(check(compose([f"strategy=non_transformer_{kind}", f"model={model}", *chosen]))).matched
    assert found is not None
    assert (found.name, found.dtype, found.device) == (name, "bfloat16", "cpu")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("strategy=non_transformer_mamba", "model=llama8"),
            r"kind=mamba: model=llama8 names no such network of its size\. It names: none\. model\.matched\.mamba=<a",
        ),
        (
            ("strategy=matched", "model=tiny-mha"),
            r"kind=: model=tiny-mha names no such .* It names: .*mamba.*\. \+model\.matched\.<kind>=<a model's name>",
        ),
        (
            ("strategy=matched", "strategy.transform.kind=mambo"),
            r"Did you mean .*kind=mamba .*=mamba2\? It names: cla, gqa, mamba, mamba2, mha, mqa, rwkv, yoco\. \+model",
        ),
        (
            ("strategy=matched", "strategy.transform.kind=mho", "+model.matched.mho=tiny-mho"),
            r"model=tiny-mho: there is no such choice\. Did you mean .*tiny-mha",
        ),
    ],
)
def test_a_network_that_is_not_there_is_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        job_of(check(compose(overrides)))


def test_what_is_about_keys_and_values_is_refused_on_a_recurrent_network() -> None:
    found = matched.made(replace(matched.job("rwkv", "strategy/codec=int8"), spec=spec()))
    assert found.unsupported is not None
    assert "keeps no keys and values that this strategy is about; use strategy/codec=dense" in found.unsupported
    assert "strategy" not in found.arms


def test_the_family_names_all_of_its_members() -> None:
    members = {name.removeprefix("tiny-"): name for name in family_models()}
    assert set(shipped()) <= members.keys()
    for own in ("tiny", *members.values()):
        assert names_of(own) == {kind: name for kind, name in members.items() if name != own}
    params = OmegaConf.load(str(files("kvbench.conf") / "experiment" / "family.yaml")).hydra.sweeper.params
    assert params["strategy.transform.kind"].split(",") == sorted(names_of("tiny-mha"))


def test_nothing_is_planned_for_a_recurrent_model() -> None:
    spec: ModelSpec = check(compose(["model=tiny-mamba"])).model
    with pytest.raises(ValueError, match=r"model=tiny-mamba is recurrent and keeps nothing .* another model="):
        network_of(spec)


def family_models() -> list[str]:
    """Return the models that are the family's, trained or not."""
    entries = (files("kvbench.conf") / "model").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.startswith("tiny-"))


def names_of(model: str) -> dict[str, str]:
    """Return the networks that a model's yaml says are of its size."""
    found: dict[str, str] = dict(check(compose([f"model={model}"])).model.matched)
    return found


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert not oracles_in(matched) - seen_to_fail(MUTANTS)
