"""A sweep loses no run, whatever happens to one of its rows, to its launcher or to itself."""

from __future__ import annotations

import random
import signal
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

import kvbench
from kvbench import runner
from kvbench.cli import main, progress
from kvbench.cli.progress import OfSweep
from kvbench.configuration import Checked
from kvbench.configuration.identity import config_json, short_hash
from kvbench.measure.environment import source_hash
from kvbench.runner import Result
from tests.cli.conftest import FakeRunner
from tests.results.factory import failed, write
from tests.support.sweeping import sweep_apart

SEEDS = ["run", "-m", "seed=1,2,3"]


def status(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return what `kvbench sweep status` says."""
    capsys.readouterr()
    assert main(["sweep", "status"]) == 0
    return capsys.readouterr().out.splitlines()


def stumbles(checked: Checked) -> Exception | None:
    return RuntimeError("nobody foresaw this") if checked.seed == 2 else None


def test_what_nobody_foresaw_costs_no_other_row(fake: FakeRunner, capsys: pytest.CaptureFixture[str]) -> None:
    fake.refuse = stumbles
    assert main(SEEDS) == 1
    assert [len(frame) for frame in fake.shown] == [2]
    err = capsys.readouterr().err
    assert "1 of 3 rows were not run:\nseed=2: RuntimeError: nobody foresaw this" in err
    assert "2 of 3 rows, about 0:00:00 left: seed=2: not run\n3 of 3 rows: seed=3: ok\n" in err
    heading, *rows = status(capsys)
    assert heading.endswith(": 0 of 3 rows are finished, 2 missing, 1 refused")  # the runner that stands in writes none
    assert rows[1].split(maxsplit=2) == ["refused", "seed=2:", "RuntimeError: nobody foresaw this"]


class GivesUp(BasicLauncher):
    """Measures two rows and loses the worker of the third."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        super().launch(job_overrides[:2], initial_job_idx)
        raise RuntimeError("a worker was killed")


class Elsewhere(BasicLauncher):
    """Measures as if it did so elsewhere."""


@pytest.mark.parametrize(("launcher", "code"), [(Elsewhere, 0), (GivesUp, 1)])
def test_a_launcher_that_gives_up_shows_what_is_there(
    launcher: type[BasicLauncher],
    code: int,
    fake: FakeRunner,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def instantiate(plugins: Plugins, **context: Any) -> Launcher:
        made = instantiated(plugins, **context)
        made.__class__ = launcher  # Hydra knows none that is no plugin
        return made

    def run(config: DictConfig, checked: Checked, **known: Any) -> Result:
        result = stand_in(config, checked, **known)
        identity = {
            "strategy": "baseline",
            "config_hash": short_hash(config_json(config)),
            "source_hash": source_hash(),
        }
        write(Path("runs"), f"r{checked.seed}", [failed(**identity, status="timeout", reason="s")], sweep=checked.sweep)
        return result

    stand_in, instantiated = fake.run, Plugins.instantiate_launcher
    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr(Plugins, "instantiate_launcher", instantiate)
    assert main(SEEDS) == code
    assert [len(frame) for frame in fake.shown] == [3 - code]
    err = capsys.readouterr().err
    assert f"3 rows go to {launcher.__name__}; kvbench sweep status runs/adhoc-" in err
    assert ("the launcher gave up: RuntimeError: a worker was killed\nkvbench sweep status runs/" in err) == bool(code)


def test_time_left_leaves_out_what_was_measured_before(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 14.0, 20.0, 28.0])  # the first row's end is not asked for
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    outcomes: Any = iter([Exception(), Exception(), ValueError()])
    said = iter(["ok, measured before", "ok", "not run"])
    monkeypatch.setattr(progress, "_said", lambda outcome: next(said))
    shown = OfSweep(["a", "b", "c", "d", "e"])
    with shown.around(lambda config: next(outcomes)) as job:
        standing = []
        for _ in range(3):
            job(None)  # type: ignore[arg-type]
            standing.append(shown.standing)
    assert standing == ["1 of 5 rows", "2 of 5 rows, about 0:00:12 left", "3 of 5 rows, about 0:00:12 left"]


def test_a_tree_without_a_sweep_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "status", str(tmp_path)]) == 2
    assert "start one with -m or +experiment=" in capsys.readouterr().err


TEN = random.Random(0).choices(range(20), k=10)  # a row has eleven


@pytest.mark.parametrize(
    ("num_rows", "moments"), [(4, (0, 19)), pytest.param(12, TEN, marks=pytest.mark.shipped)], ids=["twice", "often"]
)
def test_a_sweep_that_is_killed_goes_on_with_what_is_missing(
    num_rows: int,
    moments: Sequence[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    runs, log, there = tmp_path / "runs", tmp_path / "log", dict[Path, int]()
    for killed_at in moments:
        assert sweep_apart(runs, num_rows, log, killed_at) == -signal.SIGKILL
        there |= {path: path.stat().st_ino for path in runs.glob("*/[!.]*/run.parquet")}
        if there:
            said = f"{len(there)} of {num_rows} rows are finished, {num_rows - len(there)} missing"
            assert status(capsys)[0].endswith(said)
    assert 0 < len(there) < num_rows
    assert sweep_apart(runs, num_rows, log) == 0
    assert sorted(kvbench.load(runs)["seed"]) == list(range(num_rows))
    assert {path: path.stat().st_ino for path in there} == there
    assert len(log.read_text().split()) <= num_rows + len(moments)  # of each kill at most one row is measured again
    assert not list(runs.glob("*/.draft-*"))
    assert status(capsys)[0].endswith(f": {num_rows} of {num_rows} rows are finished")
