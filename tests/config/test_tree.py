"""The whole tree: every yaml is complete, says what it is, and gives way in the right order."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache, partial
from importlib.resources import files
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.kvbench_sweeper.tuner import space_of
from kvbench.cli.catalogue import aliases, catalogue, first_line
from kvbench.configuration import Checked, ConfigError, check, compose, resolved
from kvbench.configuration.building import TARGET, build, schema
from kvbench.configuration.composing import ASKED, VERSION_BASE, parse
from tests.mutants import configuration as mutants

CONF = Path(str(files("kvbench.conf"))).resolve()
PARTS = [name for name in dict(catalogue()) if "/" in name]
CHOICES = [f"{group}={name}" for group, names in catalogue() for name in names if group not in ("experiment", "row")]
STUDY = "paged_attention_study"
ROWS = list(dict(catalogue())["row"])
EXPERIMENTS = list(dict(catalogue())["experiment"])
STRATEGIES = list(dict(catalogue())["strategy"])
COMPANY = {  # choices that other parts have to fit
    "strategy/budget=lazy": ("strategy/scorer=recent_run",),
    "strategy/budget=cheapest_policy": ("strategy/selector=policy_order", "strategy/scorer=mean_attention"),
}
PREFIXES = ("kvbench.",)
RUN = ("strategy", "engine", "scheduler", "workload")  # groups that a strategy may choose
SURVEY = (  # as the survey's project has them
    "baseline,attention_sink,minicache,vllm,transformers,h2o,pyramidkv,quantization,quantization_8bit,"
    "quantization_4bit,sliding_window,gqa,lorc,lorc_8bit,lorc_fp16,scheduling_fcfs,scheduling_prefix,smoothquant,"
    "smoothquant_05,smoothquant_08,non_transformer_rwkv,non_transformer_mamba,architecture_alteration,arch_alt_10x,"
    "arch_alt_20x"
)
KINDS = {  # of savings, and how the output relates to the full cache's; what is trained and has no weights says so
    ("none", "exact"): "baseline,transformers,vllm,scheduling_fcfs,scheduling_prefix",
    ("physical", "lossy_training_free"): "attention_sink,sliding_window,h2o,pyramidkv,minicache,gqa",
    ("packed", "lossy_training_free"): (
        "quantization,quantization_8bit,quantization_4bit,smoothquant,smoothquant_05,smoothquant_08,lorc,lorc_8bit,"
        "lorc_fp16"
    ),
    ("physical", "trained"): (
        "architecture_alteration,arch_alt_10x,arch_alt_20x,non_transformer_rwkv,non_transformer_mamba"
    ),
}
SURVEY_TWINS = {
    "quantization": "quantization_8bit",
    "lorc": "lorc_8bit",
    "smoothquant": "smoothquant_05",
    "architecture_alteration": "arch_alt_10x",
}


def composed(conf: Path, *overrides: str) -> DictConfig:
    """Return what a tree that need not be ours makes of overrides."""
    with initialize_config_dir(str(conf), version_base=VERSION_BASE):
        return hydra_compose("config", list(overrides))


def objects(node: object, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every node that stands for an object."""
    if isinstance(node, Mapping):
        if TARGET in node:
            yield key, node
        for name, value in node.items():
            yield from objects(value, f"{key}.{name}")


def plain(file: Path) -> Any:
    """Return what one file says, uncomposed."""
    return OmegaConf.to_container(OmegaConf.load(file))


@cache
def whole(choice: str) -> DictConfig:
    """Return what a choice makes of our tree."""
    return compose([choice, *COMPANY.get(choice, ())])


@cache
def parts() -> DictConfig:
    """Return every choice of every part beside the full cache's own, all from one composition."""
    beside = [choice.split("=") for choice in CHOICES if "/" in choice]
    return compose([f"+{group}@beside.{group.replace('/', '.')}.{name}={name}" for group, name in beside])


def chosen(choice: str) -> Any:
    """Return the node that a choice makes in our tree."""
    group, _, name = choice.partition("=")
    if "/" not in group:
        return resolved(whole(choice))[group]
    node = resolved(parts())["beside"]
    for key in (*group.split("/"), name):
        node = node[key]
    return node


def check_keys(node: object, group: str) -> None:
    """Fail unless every object of a node is given exactly its class's fields, none of which has a default."""
    found = list(objects(node, group))
    assert found
    for key, given in found:
        cls: type = type(build(given, object, key, PREFIXES))
        assert set(given) - {TARGET} == set(schema(cls)), key
        for field in (field for field in dataclasses.fields(cls) if field.init):
            assert field.default is dataclasses.MISSING, f"{key}.{field.name} has a default in the code"
            assert field.default_factory is dataclasses.MISSING, f"{key}.{field.name} has a default in the code"


@pytest.mark.parametrize("choice", CHOICES)
def test_every_yaml_gives_its_class_every_field_and_no_other(choice: str) -> None:
    check_keys(chosen(choice), choice.partition("=")[0])


@pytest.mark.parametrize(
    "mutant",
    [
        partial(mutants.with_line, "workload/decode.yaml", "dead_flag: 1"),
        partial(mutants.without_key, "workload/decode.yaml", "new_tokens"),
    ],
)
def test_the_check_of_keys_catches_dead_flags_and_hidden_defaults(mutant: Any, tmp_path: Path) -> None:
    broken = composed(mutant(CONF, tmp_path / "conf"), "workload=decode")
    with pytest.raises((AssertionError, ConfigError)):
        check_keys(OmegaConf.to_container(broken.workload), "workload")


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if "/" not in choice] + list(COMPANY))
def test_every_choice_makes_a_whole_run(choice: str) -> None:
    assert isinstance(check(whole(choice)), Checked)


@pytest.mark.parametrize("choice", COMPANY)
def test_a_choice_that_needs_company_says_of_what(choice: str) -> None:
    with pytest.raises(ConfigError, match=COMPANY[choice][0]):
        check(compose([choice]))


@pytest.mark.parametrize("row", ROWS)
def test_every_row_makes_a_whole_run(row: str) -> None:
    assert isinstance(check(compose([f"+row={row}"])), Checked)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_says_its_question_and_its_command(name: str) -> None:
    line = first_line(CONF / "experiment" / f"{name}.yaml")
    assert line.endswith(f"python run.py +experiment={name}")
    assert "?   " in line


def rows_of(conf: Path, experiment: str) -> list[str]:
    """Return the rows that an experiment names."""
    params: dict[str, str] = plain(conf / "experiment" / f"{experiment}.yaml")["hydra"]["sweeper"]["params"]
    return params["+row"].split(",")


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.endswith("_search")])
def test_every_search_makes_whole_runs_from_end_to_end(name: str) -> None:
    space: dict[str, Any]
    _, space = space_of(parse([f"{key}={said}" for key, said in searched(name).items()]))
    assert len(space) == len(searched(name))
    said = {key: vars(kind) for key, kind in space.items()}
    ends = {key: kind.get("choices") or (kind["low"], kind["high"]) for key, kind in said.items()}
    for end in (0, -1):
        chosen = [f"{key}={values[end]}" for key, values in ends.items()]
        assert isinstance(check(compose([f"+experiment={name}", *chosen])), Checked)


def searched(name: str) -> dict[str, str]:
    """Return what an experiment sweeps over or searches, by key."""
    params: dict[str, str] = plain(CONF / "experiment" / f"{name}.yaml")["hydra"]["sweeper"]["params"]
    return params


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if not name.endswith("_search")])
def test_every_experiment_names_rows_that_are_there_and_make_whole_runs(name: str) -> None:
    params = plain(CONF / "experiment" / f"{name}.yaml")["hydra"]["sweeper"]["params"]
    known = {"+row": set(ROWS), "strategy": set(STRATEGIES)}
    for key, listed in params.items():
        rows = listed.split(",")
        assert set(rows) <= known.get(key, set(rows))
        assert len(set(rows)) == len(rows) > 1
    values = [listed.split(",") for listed in params.values()]
    for rows in islice(zip(*map(cycle, values), strict=False), max(map(len, values))):  # every value, not every pair
        chosen = [f"{key}={row}" for key, row in zip(params, rows, strict=True)]
        assert isinstance(check(compose([f"+experiment={name}", *chosen])), Checked)


def test_the_study_of_paged_attention_varies_pages_and_has_no_cache_beside_them() -> None:
    made = {row: compose([f"+experiment={STUDY}", f"+row={row}"]) for row in rows_of(CONF, STUDY)}
    sizes = [made[row].strategy.layout.page_tokens for row in made if row.startswith("paged_")]
    assert sizes == [8, 16, 64, 128, 256]
    assert [row for row in made if not row.startswith("paged_")] == ["baseline", "no_cache"]
    for row, one in made.items():
        assert row in ("baseline", "no_cache", f"paged_{one.strategy.layout.get('page_tokens')}")
        assert (one.model.name, one.workload.new_tokens) == ("llama8", 8)


@cache
def made_of_the_survey() -> dict[str, str]:
    """Return what each name of the survey runs as, all that a strategy may choose included."""
    configs = {name: resolved(whole(f"strategy={name}")) for name in SURVEY.split(",")}
    return {name: json.dumps([config[key] for key in RUN], sort_keys=True) for name, config in configs.items()}


def check_names(named: Mapping[str, str]) -> None:
    """Fail unless names of the survey that run as the same are those of which one is said to be the other's."""
    made = made_of_the_survey()
    twins = {frozenset(name for name in made if made[name] == one) for one in made.values()}
    assert {names for names in twins if len(names) > 1} == {frozenset(pair) for pair in named.items()}


def test_two_names_of_the_survey_are_one_method_where_a_yaml_says_so_and_nowhere_else() -> None:
    params = plain(CONF / "experiment" / "survey25.yaml")["hydra"]["sweeper"]["params"]
    assert sorted(params["strategy"].split(",")) == sorted(SURVEY.split(","))
    assert aliases() == SURVEY_TWINS
    check_names(aliases())


def test_each_name_of_the_survey_says_what_it_saves_and_at_what_price() -> None:
    said: dict[tuple[str, str], set[str]] = {}
    for name in SURVEY.split(","):
        strategy = check(whole(f"strategy={name}")).strategy
        said.setdefault((strategy.saving, strategy.fidelity), set()).add(name)
    assert said == {kind: set(names.split(",")) for kind, names in KINDS.items()}


@pytest.mark.parametrize("mutant", [{"smoothquant": "smoothquant_08"}, {"h2o": "pyramidkv"}, {"lorc": "lorc_fp16"}])
def test_the_check_of_names_catches_what_nobody_said_and_what_is_not_so(mutant: dict[str, str]) -> None:
    with pytest.raises(AssertionError):
        check_names({**aliases(), **mutant})


def test_the_study_of_kvpr_varies_what_it_says_on_a_model_that_kvpr_can_help() -> None:
    made = {row: compose(["+experiment=kvpr_study", f"+row={row}"]) for row in rows_of(CONF, "kvpr_study")}
    config = made["baseline"].model.architecture
    assert config.num_key_value_heads == config.num_attention_heads
    again = [made[f"kvpr_{row}"].strategy.placement.recompute for row in ("quarter", "half", "auto")]
    assert again == [0.25, 0.5, "auto"]
    away = [made[row].strategy.placement.host for row in ("flexgen_quarter", "flexgen_half", "offload")]
    assert away == [0.25, 0.5, 1.0]
    assert [made[f"transformers_{row}"].engine.attention for row in ("sdpa", "eager")] == ["sdpa", "eager"]
    assert {(one.workload.prompt_tokens, one.model.name) for one in made.values()} == {(2048, "llama8")}


def test_every_yaml_says_in_its_first_comment_what_it_is() -> None:
    silent = [str(file) for file in CONF.rglob("*.yaml") if len(first_line(file)) < 5]
    assert silent == []


def test_what_yaml_asks_of_the_environment_is_part_of_what_a_composition_is_kept_under() -> None:
    names = {name for file in CONF.rglob("*.yaml") for name in re.findall(r"oc\.env:\s*(\w+)", file.read_text("utf-8"))}
    assert names
    assert [name for name in names if not name.startswith(ASKED)] == []


def nulls(node: object, key: str) -> Iterator[str]:
    """Yield the keys of a node that hold nothing."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from nulls(value, f"{key}.{name}")
    elif node is None:
        yield key


def test_no_value_is_null_but_what_transformers_calls_so() -> None:
    found = [key for file in CONF.rglob("*.yaml") for key in nulls(plain(file), file.stem)]
    assert [key for key in found if ".architecture." not in key] == ["config.hydra.output_subdir"]


EXPERIMENT = """\
# @package _global_
seed: 7
compare: none
workload:
  prompt_tokens: 96
"""
CHOICE = """\
# @package _global_
seed: 9
"""


def check_order(conf: Path, tmp_path: Path) -> None:
    """Fail unless choices and experiments win over the tree's own values, and the command line over all."""
    elsewhere = tmp_path / "elsewhere"
    for file, text in {"experiment/mine.yaml": EXPERIMENT, "quality/mine.yaml": CHOICE}.items():
        (elsewhere / file).parent.mkdir(parents=True)
        (elsewhere / file).write_text(text, encoding="utf-8")
    there = f"hydra.searchpath=[file://{elsewhere}]"
    assert composed(conf, "quality=mine", there).seed == 9
    got = composed(conf, "quality=mine", "+experiment=mine", there)
    assert (got.seed, got.compare, got.workload.prompt_tokens) == (7, "none", 96)
    typed = composed(conf, "quality=mine", "+experiment=mine", "seed=8", "workload.prompt_tokens=97", there)
    assert (typed.seed, typed.compare, typed.workload.prompt_tokens) == (8, "none", 97)


def test_the_command_line_wins_over_an_experiment_and_that_over_the_tree(tmp_path: Path) -> None:
    check_order(CONF, tmp_path)


def test_the_check_of_the_order_catches_self_at_the_end(tmp_path: Path) -> None:
    broken = mutants.self_last(CONF, tmp_path / "conf")
    with pytest.raises(AssertionError):
        check_order(broken, tmp_path)


def test_a_row_wins_over_its_experiment_and_the_command_line_over_both() -> None:
    config = compose(["+experiment=first_look", "+row=h2o_quarter", "strategy.budget.amount=0.5", "model=llama8"])
    assert config.strategy.selector.recent_share == 0.5
    assert (config.strategy.budget.amount, config.model.name) == (0.5, "llama8")


def test_parts_are_chosen_on_the_command_line_for_every_cache_strategy() -> None:
    for strategy in ("baseline", "attention_sink"):
        last = {part: max(dict(catalogue())[part]) for part in PARTS}
        config = resolved(compose([f"strategy={strategy}", *(f"{part}={name}" for part, name in last.items())]))
        for part, name in last.items():
            given = config["strategy"][part.partition("/")[2]]
            assert given[TARGET] == chosen(f"{part}={name}")[TARGET], part


def test_a_strategy_may_choose_the_engine_and_the_command_line_still_wins() -> None:
    assert "Stock" in compose(["strategy=transformers"]).engine[TARGET]
    assert "Eager" in compose(["strategy=transformers", "engine=eager"]).engine[TARGET]
