"""hydra/sweeper=optuna: rows are searched, what was cut off is tried again, and what no other beats is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import DictConfig
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from hydra_plugins.kvbench_sweeper.tuner import JOURNAL, space_of
from kvbench import runner
from kvbench.cli import main
from kvbench.configuration import Checked
from kvbench.configuration.composing import parse
from kvbench.runner import Names, Progress, Result

SEARCH = ["run", "-m", "hydra/sweeper=optuna", "strategy=h2o", "sweep=found", "hydra.sweeper.sampler=random"]
BUDGET = "strategy.budget.amount=interval(0.1,0.9)"


@dataclass
class Runs:
    """Stand in for the runner: a loss that is least at 0.7, and bytes that grow with the budget."""

    amounts: list[float] = field(default_factory=list)
    disturb: Callable[[int], str] = lambda number: "ok"

    def run(self, config: DictConfig, checked: Checked, *, names: Names, progress: Progress) -> Result:
        """Return what a run with this budget would have measured."""
        amount: float = vars(checked.strategy.budget).get("amount", 0.5)
        self.amounts.append(amount)
        status = self.disturb(len(self.amounts))
        row = {
            "run_id": f"{amount:.12f}",
            "arm": "strategy",
            "status": status,
            "reason": "it is",
            "nll_delta_nats": abs(amount - 0.7),
            "kv_allocated_bytes": float("nan") if status == "empty" else 1000 * amount,
        }
        if status == "empty":
            row["status"] = "ok"
        return Result(rows=pd.DataFrame([row, row | {"arm": "baseline"}]), folder=Path("runs"), is_new=True)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runs:
    """Replace the runner and stand in an empty folder."""
    made = Runs()
    monkeypatch.setattr(runner, "run", made.run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return made


def test_lists_ranges_and_intervals_are_searched_and_the_rest_is_set() -> None:
    asked = [
        "a=1",
        "b=x,y",
        "c=range(2,9,3)",
        "d=interval(0.5,2)",
        "e=int(interval(1,8))",
        "f=tag(log,interval(1e-3,1.0))",
    ]
    fixed, space = space_of(parse([*asked, "g=choice(z)"]))
    assert fixed == ["a=1", "g=z"]
    assert space == {
        "b": CategoricalDistribution(["x", "y"]),
        "c": IntDistribution(2, 8, step=3),
        "d": FloatDistribution(0.5, 2.0),
        "e": IntDistribution(1, 8),
        "f": FloatDistribution(1e-3, 1.0, log=True),
    }


@pytest.mark.shipped
def test_what_no_other_beats_in_every_objective_is_shown(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SEARCH, BUDGET, "hydra.sweeper.trials=12"]) == 0
    assert len(runs.amounts) == len(set(runs.amounts)) == 12
    assert all(0.1 <= amount <= 0.9 for amount in runs.amounts)
    said = capsys.readouterr()
    below = [amount for amount in runs.amounts if amount <= 0.7]
    above = [amount for amount in runs.amounts if amount > 0.7 and amount - 0.7 < 0.7 - max(below)]
    front = {f"{amount:.12f}" for amount in [*below, *above[:1]]}
    assert {word for line in said.out.splitlines() for word in line.split()[-1:] if word.startswith("0.")} == front
    assert "12 trials, 0 failed" in said.out
    assert "trial 12 of 12: amount=0." in said.err


def test_the_shipped_search_searches(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "+experiment=streaming_kvquant_search", "hydra.sweeper.trials=2"]) == 0
    assert len(runs.amounts) == 2
    assert "num_sink=" in capsys.readouterr().out


def test_one_objective_has_one_best(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    alone = "~hydra.sweeper.objectives.kv_allocated_bytes"
    assert main([*SEARCH[:-1], BUDGET, "hydra.sweeper.trials=14", alone]) == 0
    best = min(runs.amounts, key=lambda amount: abs(amount - 0.7))
    assert f"{best:.12f}" in capsys.readouterr().out
    assert abs(best - 0.7) < 0.1


def test_a_search_that_was_cut_off_goes_on_with_what_it_was_at(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    def cut_off(number: int) -> str:
        if number == 4:
            raise KeyboardInterrupt
        return "ok"

    runs.disturb = cut_off
    with pytest.raises(KeyboardInterrupt):
        main([*SEARCH, BUDGET, "hydra.sweeper.trials=6"])
    runs.disturb = lambda number: "ok"
    assert main([*SEARCH, BUDGET, "hydra.sweeper.trials=6"]) == 0
    assert "3 of 6 trials were there already" in capsys.readouterr().err
    assert len(runs.amounts) == 7
    assert runs.amounts[4] == runs.amounts[3]
    assert len(set(runs.amounts)) == 6
    assert main([*SEARCH, BUDGET, "hydra.sweeper.trials=8"]) == 0
    assert len(set(runs.amounts)) == 8
    assert Path("runs/found", JOURNAL).is_file()


@pytest.mark.shipped
def test_another_question_is_another_search(runs: Runs) -> None:
    for more in ([], ["workload.prompt_tokens=512"]):
        assert main([*SEARCH, BUDGET, "hydra.sweeper.trials=2", *more]) == 0
    assert len(runs.amounts) == 4


def test_trials_that_fail_are_counted_and_say_why(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs.disturb = lambda number: {1: "out_of_memory", 2: "empty"}.get(number, "ok")
    assert main([*SEARCH, BUDGET, "hydra.sweeper.trials=4", "hydra.sweeper.at_once=2"]) == 0
    said = capsys.readouterr()
    assert "trial 1 of 4" in said.err
    assert "out_of_memory: it is" in said.err
    assert "the run has no kv_allocated_bytes" in said.err
    assert "4 trials, 2 failed" in said.out


def test_a_search_in_which_all_fails_fails(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs.disturb = lambda number: "error"
    assert main([*SEARCH, BUDGET, "hydra.sweeper.trials=2"]) == 1
    assert "all 2 trials failed:\nerror: it is" in capsys.readouterr().err
    refused = [*SEARCH, "strategy.budget.amount=-1,-2", "hydra.sweeper.trials=2", "seed=1"]
    assert main(refused) == 1
    assert "all 2 trials failed:\nstrategy.budget.amount" in capsys.readouterr().err
    assert len(runs.amounts) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "nothing is searched: give a key a list"),
        ([BUDGET, "hydra.sweeper.sampler=best"], "hydra.sweeper.sampler must be one of tpe, nsga2, random; got 'best'"),
        ([BUDGET, "hydra.sweeper.trials=0"], "hydra.sweeper.trials must be at least 1; got 0"),
        ([BUDGET, "hydra.sweeper.at_once=0"], "hydra.sweeper.at_once must be at least 1; got 0"),
        (
            [BUDGET, "+hydra.sweeper.objectives.nll_delta=minimize"],
            "hydra.sweeper.objectives: nll_delta is no column of numbers. Did you mean nll_delta_",
        ),
        ([BUDGET, "+hydra.sweeper.objectives.verdict=maximize"], "verdict is no column of numbers"),
        (
            [BUDGET, "+hydra.sweeper.objectives.ratio=least"],
            "hydra.sweeper.objectives.ratio must be minimize or maximize; got 'least'",
        ),
        (
            [BUDGET, *(f"~hydra.sweeper.objectives.{name}" for name in ("nll_delta_nats", "kv_allocated_bytes"))],
            "hydra.sweeper.objectives must name at least one column",
        ),
    ],
)
def test_searches_that_cannot_be_name_the_key(
    overrides: list[str], message: str, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SEARCH, *overrides]) == 2
    assert message in capsys.readouterr().err
    assert not runs.amounts
