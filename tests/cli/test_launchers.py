"""Six rows through launchers that bring workers of their own; where one is not installed, its test is left out.

pip install 'kvbench[joblib]'    # or submitit, or ray; then python -m pytest tests/cli/test_launchers.py
"""

from __future__ import annotations

from pathlib import Path

import pytest

import kvbench
from kvbench.cli import main
from kvbench.cli.run import LAUNCHERS
from tests.cli.conftest import FakeRunner

SIX = ["run", "-m", "workload.batch_size=1,2,3,4,5,200000", "workload.prompt_tokens=48", "workload.new_tokens=2"]
QUICK = [
    *("compare=none", "quality=none", "model.device=cpu", "sink.wandb.mode=disabled", "measure.cell_seconds=0.05"),
    *("measure.min_rounds=2", "measure.max_rounds=2", "measure.quiet_seconds=0"),
]
STATUS = ["out_of_memory", *["ok"] * 5]


def six_rows(launcher: str, runs: Path, *settings: str) -> list[str]:
    """Return how the rows of a sweep ended, the largest batch first."""
    assert main([*SIX, *QUICK, f"runs={runs}", f"hydra/launcher={launcher}", *settings]) == 0
    frame = kvbench.load(runs).sort_values("batch_size", ascending=False)
    return [str(status) for status in frame["status"]]


@pytest.mark.parametrize(
    ("launcher", "settings"),
    [
        ("joblib", ["hydra.launcher.n_jobs=2"]),
        ("submitit_local", []),
        ("ray", ["+hydra.launcher.ray.init.num_cpus=2", "+hydra.launcher.ray.init.include_dashboard=false"]),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of other people's packages
def test_six_jobs_of_which_one_fails_are_six_rows(
    launcher: str,
    settings: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.chdir(tmp_path)
    assert six_rows(launcher, tmp_path / "runs", *settings) == STATUS
    assert "measured before" not in capfd.readouterr().out
    assert main(["sweep", "status", str(tmp_path)]) == 0
    heading, *rows = capfd.readouterr().out.splitlines()
    assert heading.endswith(": 6 of 6 rows are finished")
    assert [row.split()[0] for row in rows] == STATUS[::-1]
    assert six_rows(launcher, tmp_path / "runs", *settings) == STATUS
    assert capfd.readouterr().out.count("measured before") == 6


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "submitit_slurm", "ray"])
def test_a_launcher_that_is_not_installed_says_what_to_install(
    launcher: str, fake: FakeRunner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = launcher.partition("_")[0]
    assert extra in LAUNCHERS
    monkeypatch.setattr("kvbench.cli.run.find_spec", lambda package: None)
    assert main([*SIX, f"hydra/launcher={launcher}"]) == 2
    assert f"hydra/launcher={launcher} is not installed: pip install 'kvbench[{extra}]'" in capsys.readouterr().err
    assert fake.asked == []
