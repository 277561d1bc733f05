"""Notebooks run from top to bottom on a tree of runs, and are kept without their outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plots.drawing import study, tree

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
KEPT = ("analysis.ipynb", "paged_attention_study.ipynb")
REAL = Path(__file__).parents[1] / "fixtures" / "runs"  # how it was made: tests/fixtures/README.md


def runs_through(notebook: str, runs: Path, folder: Path) -> None:
    """Run all cells of a notebook on a tree of runs."""
    command = [sys.executable, "-m", "pytest", "--nbmake", "-q", "-p", "no:cacheprovider", str(NOTEBOOKS / notebook)]
    surroundings = {**os.environ, "KVBENCH_RUNS": str(runs), "IPYTHONDIR": str(folder), "MPLBACKEND": "agg"}
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


@pytest.mark.parametrize("is_real", [True, False], ids=["real", "made_up"])
def test_the_notebook_runs_on_a_tree_of_runs(tmp_path: Path, is_real: bool) -> None:
    if not is_real:
        tree(tmp_path / "runs")
    runs_through("analysis.ipynb", REAL if is_real else tmp_path / "runs", tmp_path)


def test_the_study_of_paged_attention_runs_on_its_runs(tmp_path: Path) -> None:
    study(tmp_path / "runs")
    runs_through("paged_attention_study.ipynb", tmp_path / "runs", tmp_path)


@pytest.mark.parametrize("notebook", KEPT)
def test_a_notebook_is_kept_without_outputs(notebook: str) -> None:
    cells = json.loads((NOTEBOOKS / notebook).read_text())["cells"]
    assert all(
        cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code"
    )


def test_every_notebook_is_run() -> None:
    assert sorted(path.name for path in NOTEBOOKS.glob("*.ipynb") if path.name != "executed.ipynb") == sorted(KEPT)
