"""What does not compose is explained by what was meant."""

from __future__ import annotations

import re

import pytest
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from kvbench.configuration import ConfigError, check, compose, composing, resolved
from kvbench.configuration.composing import sweep_name
from tests.mutants import configuration as mutants


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "strategy=h2oo",
            "strategy=h2oo: there is no such choice. Did you mean strategy=h2o? Choices: adakv, attention_sink,",
        ),
        ("strategy/codec=dens", "strategy/codec=dens: there is no such choice. Did you mean strategy/codec=dense?"),
        ("stratgy=h2o", "the configuration has no 'stratgy'. Did you mean strategy?"),
        ("+stratgy=h2o", "the configuration has no 'stratgy'. Did you mean strategy?"),
        ("strategy/codecs=dense", "there is no group strategy/codecs. Did you mean strategy/codec?"),
        ("workload.promt_tokens=4", "workload has no 'promt_tokens'. Did you mean workload.prompt_tokens"),
        (
            "+workload.promt_tokens=4",
            "workload (Decode) has no setting 'promt_tokens'. Did you mean workload.prompt_tokens",
        ),
        ("workload.prompt_tokens.x=4", "workload.prompt_tokens is a value, it has no settings of its own."),
        ("strategy.budget.amount=0.5", "strategy.budget.amount exists with strategy/budget=adaptive,"),
        ("strategy.codec=dense", "To choose one write strategy/codec=dense, with a slash."),
        ("+strategy=h2o", "strategy is chosen already, leave out the +."),
        ("strategy=h2o,snapkv", "strategy=h2o,snapkv holds several values: add -m to run every one"),
        ("strategy=5", "strategy=5: strategy is chosen by name. Choices: adakv, attention_sink,"),
        ("strategy", "'strategy' cannot be read, write key=value"),
        ("workload.prompt_tokens=[1,", "'workload.prompt_tokens=[1,' cannot be read, write key=value"),
        ("+experiment=frist_look", "Did you mean experiment=first_look?"),
        ("hydra.nothing=1", "Could not override 'hydra.nothing'."),
        ("~model", "the configuration lacks 'model'."),
        ("seed=zero", 'seed must be a whole number; got "zero".'),
        ("compare=base", 'compare cannot be "base". Did you mean baseline?'),
        ("model.dtype=flaot32", "Did you mean float32? Choices: bfloat16, float16, float32."),
        (
            "strategy.codec._target_=os.system",
            "strategy.codec._target_=os.system is not allowed; allowed are kvbench.*",
        ),
        ("strategy=h2o strategy.budget.amount=-1", "strategy.budget.amount"),
        ("strategy=h2o strategy.budget.amount=0", "strategy.budget.amount"),
        ("strategy=h2o strategy.budget.amount=1.5", "strategy.budget.amount"),
        ("strategy=h2o strategy.budget.unit=token", "Did you mean tokens? Choices: bytes, ratio, tokens."),
        ("strategy=snapkv strategy/scorer=random", "strategy.selector.num_recent refers to strategy.scorer.window"),
        ("workload=text workload.path=nowhere.txt", "workload.path=nowhere.txt"),
        ("model.path=nowhere", "model.path=nowhere"),
    ],
)
def test_a_wrong_override_gives_one_message_with_what_was_meant(overrides: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as raised:
        check(compose(overrides.split()))
    assert "\n" not in str(raised.value)


def test_a_value_that_is_missing_is_named() -> None:
    with pytest.raises(ConfigError, match=re.escape("model.name: ")):
        resolved(compose(["model.name=???"]))


def test_composing_works_inside_another_application_of_hydra_and_leaves_it_alone() -> None:
    with initialize_config_module("kvbench.conf", version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        assert compose(["strategy=h2o"]).strategy.selector.recent_share == 0.5
        assert GlobalHydra.instance().hydra is outer


def test_a_sweep_is_named_after_its_experiment_or_what_it_measures() -> None:
    assert sweep_name(["model=gpt2", "+experiment=first_look"]) == "first_look"
    assert sweep_name(["a=1", "b=2"]) == sweep_name(
        ["b=2", "a=1", "force=true", "runs=elsewhere", "hydra.verbose=true"]
    )
    assert sweep_name(["a=1"]) != sweep_name(["a=2"])
    assert compose(["sweep=mine"]).sweep == "mine"


def check_names() -> None:
    """Fail unless every name survives the way through Hydra as text."""
    for number in range(300):
        overrides = [f"seed={number}"]
        name = composing.sweep_name(overrides)
        (read,) = composing.parse([f"sweep={name}"])
        assert read.value() == name


def test_the_name_of_a_sweep_is_never_read_as_a_number() -> None:
    check_names()


def test_the_check_of_names_catches_a_bare_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composing, "sweep_name", mutants.bare_hash)
    with pytest.raises(AssertionError):
        check_names()
