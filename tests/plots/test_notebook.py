"""The notebook runs from top to bottom on a tree of runs, and is kept without its outputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plots.drawing import tree

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "analysis.ipynb"
REAL = Path(__file__).parents[1] / "fixtures" / "runs"  # how it was made: tests/fixtures/README.md


@pytest.mark.parametrize("is_real", [True, False], ids=["real", "made_up"])
def test_the_notebook_runs_on_a_tree_of_runs(tmp_path: Path, is_real: bool) -> None:
    if not is_real:
        tree(tmp_path / "runs")
    command = [sys.executable, "-m", "pytest", "--nbmake", "-q", "-p", "no:cacheprovider", str(NOTEBOOK)]
    surroundings = {
        **os.environ,
        "KVBENCH_RUNS": str(REAL if is_real else tmp_path / "runs"),
        "IPYTHONDIR": str(tmp_path),
        "MPLBACKEND": "agg",
    }
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(
        cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code"
    )
