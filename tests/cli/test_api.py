"""The public functions take the names that the command line takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import kvbench
from kvbench.configuration import ConfigError, check, compose
from tests.cli.conftest import FakeRunner


def test_every_public_name_can_be_had_and_no_other() -> None:
    assert sorted(kvbench.__all__) == ["compare", "load", "run", "strategy", "trace"]
    assert all(callable(getattr(kvbench, name)) for name in kvbench.__all__)
    assert set(kvbench.__all__) < set(dir(kvbench))
    with pytest.raises(AttributeError, match="no attribute 'runs'; it has compare, load, run, strategy, trace"):
        kvbench.runs  # noqa: B018


@pytest.mark.parametrize(
    ("settings", "overrides"),
    [
        ({}, []),
        ({"budget": {"amount": 128, "unit": "tokens"}}, ["strategy.budget.amount=128", "strategy.budget.unit=tokens"]),
        ({"position": "rank", "scorer": "recency"}, ["strategy/position=rank", "strategy/scorer=recency"]),
        ({"budget": {"skip_layers": [0, 1]}}, ["strategy.budget.skip_layers=[0,1]"]),
    ],
)
def test_a_strategy_is_what_the_command_line_would_make(settings: dict[str, object], overrides: list[str]) -> None:
    assert kvbench.strategy("h2o", **settings) == check(compose(["strategy=h2o", *overrides])).strategy


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("h2oo", {}, "Did you mean strategy=h2o?"),
        ("h2o", {"budgt": {"amount": 1}}, "strategy has no 'budgt'. Did you mean strategy.budget?"),
        ("h2o", {"budgt": "uniform"}, "there is no group strategy/budgt. Did you mean strategy/budget?"),
        ("h2o", {"budget": {"amount": "a lot, 'really'"}}, "strategy.budget.amount must be a number"),
        ("h2o", {"budget": {"amount": None}}, "strategy.budget.amount must be a number; got null."),
        ("h2o", {"budget": {"amount": 0}}, "strategy.budget.amount"),
    ],
)
def test_a_wrong_strategy_is_refused_with_what_was_meant(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        kvbench.strategy(name, **settings)


def test_run_measures_what_the_command_line_would(fake: FakeRunner, capsys: pytest.CaptureFixture[str]) -> None:
    result = kvbench.run(["strategy=h2o", "model=llama8"])
    ((checked, names),) = fake.asked
    assert (names.strategy, names.model, names.overrides) == ("h2o", "llama8", "strategy=h2o model=llama8")
    assert checked == check(compose(["strategy=h2o", "model=llama8"]))
    assert list(result.rows["strategy"]) == ["h2o"]
    assert capsys.readouterr() == ("", "")
    assert list(Path().iterdir()) == []


def test_run_refuses_what_a_sweep_would_be(fake: FakeRunner) -> None:
    with pytest.raises(ConfigError, match="holds several values"):
        kvbench.run(["strategy=h2o,snapkv"])
