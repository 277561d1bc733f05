"""What does not compose is explained by what was meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir, initialize_config_module
from hydra._internal import defaults_list
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigKeyError

from kvbench.configuration import ConfigError, check, compose, composing, resolved
from kvbench.configuration.composing import sweep_name
from kvbench.configuration.reading import ReadOnce
from tests import conftest
from tests.mutants import configuration as mutants


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "strategy=h2oo",
            "strategy=h2oo: there is no such choice. Did you mean strategy=h2o? Choices: adakv, arch_alt_10x,",
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
        ("strategy=5", "strategy=5: strategy is chosen by name. Choices: adakv, arch_alt_10x,"),
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


def anew(overrides: Sequence[str]) -> DictConfig:
    """Return what overrides make, which nobody keeps."""
    config = composing._composed(*overrides)
    with open_dict(config):
        del config["hydra"]
    return config


def check_compositions_are_apart(made: Callable[[Sequence[str]], DictConfig]) -> None:
    """Fail unless every composition is Hydra's own, whatever became of the one before."""
    overrides = ["strategy=h2o", "strategy/codec=kivi2", "seed=3", "sweep=apart"]
    with initialize_config_module(composing.CONF, version_base=composing.VERSION_BASE):
        want = OmegaConf.to_container(hydra_compose(composing.ROOT, overrides))
    for _ in range(2):
        config = made(overrides)
        assert OmegaConf.to_container(config) == want
        config.seed, config.runs, config.strategy.budget.amount = 4, "elsewhere", 0.9
    assert made([]).seed != 4


@pytest.mark.parametrize("made", [anew, compose])
def test_compositions_share_files_and_nothing_else(made: Callable[[Sequence[str]], DictConfig]) -> None:
    check_compositions_are_apart(made)


def test_the_check_of_sharing_catches_files_that_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReadOnce, "load_config", mutants.SharesWhatItRead.load_config)
    with pytest.raises(AssertionError):
        check_compositions_are_apart(anew)


def test_the_check_of_sharing_catches_a_composition_that_is_handed_out_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composing, "copy", SimpleNamespace(deepcopy=lambda made: made))
    with pytest.raises((AssertionError, ConfigKeyError)):
        check_compositions_are_apart(compose)
    composing._composed_once.cache_clear()


def test_a_choice_of_ones_own_is_among_those_that_may_have_been_meant(tmp_path: Path) -> None:
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy" / "peaky_keys.yaml").write_text("defaults: [h2o]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"Choices: .* For one of your own, say where it is: --config-dir <folder>"):
        compose(["strategy=peaky_keys"])
    with pytest.raises(ConfigError, match="Did you mean strategy=peaky_keys") as raised:
        compose(["strategy=peaky_kys", *composing.search_path(str(tmp_path))])
    assert "--config-dir" not in str(raised.value)


def check_own_folder_is_read_anew(folder: Path) -> None:
    """Fail unless what a file on the search path says now is what counts."""
    (folder / "quality").mkdir()
    for samples in (3, 5):
        text = f"defaults: [none, _self_]\nrecall_samples: {samples}\n"
        (folder / "quality" / "mine.yaml").write_text(text, encoding="utf-8")
        assert compose(["quality=mine", *composing.search_path(str(folder))]).quality.recall_samples == samples


def test_a_folder_of_ones_own_is_read_anew(tmp_path: Path) -> None:
    check_own_folder_is_read_anew(tmp_path)


def test_the_check_of_ones_own_folder_catches_what_was_read_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReadOnce, "initialize_sources", mutants.KeepsWhatItRead.initialize_sources)
    with pytest.raises((AssertionError, ConfigError)):
        check_own_folder_is_read_anew(tmp_path)


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


def test_compositions_of_the_tests_are_those_of_hydra(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("strategy=scheduling_prefix", "strategy/codec=kivi2", "+experiment=first_look")
    quick = composing._composed(*asked)
    monkeypatch.setattr(defaults_list, "_create_interpolation_map", conftest.all_choices)
    assert composing._composed(*asked) == quick


def test_a_default_that_another_names_is_found(tmp_path: Path) -> None:
    for file, text in {
        "a/one.yaml": "x: 1",
        "b/one.yaml": "y: 2",
        "config.yaml": "defaults: [{a: one}, {b: '${a}'}]",
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text, encoding="utf-8")
    with initialize_config_dir(str(tmp_path), version_base=composing.VERSION_BASE):
        assert hydra_compose("config") == {"a": {"x": 1}, "b": {"y": 2}}
