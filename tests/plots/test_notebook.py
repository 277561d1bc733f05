"""Notebooks run from top to bottom on any tree of runs, and are kept without their outputs."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from tests.plots.drawing import everything, study
from tests.results.factory import failed, write

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
ALL = sorted(NOTEBOOKS.glob("*.ipynb"))
REAL = Path(__file__).parents[1] / "fixtures" / "runs"  # how it was made: tests/fixtures/README.md
STUDY = "paged_attention_study.ipynb"
TREES = ("made_up", "real", "failed")
any_but_the_study = pytest.mark.parametrize("notebook", [n for n in ALL if n.name != STUDY], ids=lambda file: file.stem)


@pytest.fixture(scope="session")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a tree in which every notebook finds something, a real one of plain decoding, and one of a failure."""
    folder = tmp_path_factory.mktemp("trees")
    everything(folder / "made_up")
    write(folder / "failed", "r", [failed("h2o", "out_of_memory", "no room", device_name=None, dtype=None)])
    return {"made_up": folder / "made_up", "real": REAL, "failed": folder / "failed"}


def texts(notebook: Path) -> list[str]:
    """Return what stands in the panels of the figures that the cells of a notebook draw."""
    shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    said: list[str] = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                shell.run_cell("".join(cell["source"])).raise_error()
            for number in plt.get_fignums():
                figure = plt.figure(number)
                figure.canvas.draw()
                said += [text.get_text().replace("\n", " ") for ax in figure.axes for text in ax.texts]
            plt.close("all")
    return said


@any_but_the_study
@pytest.mark.parametrize("tree", TREES)
def test_a_notebook_runs_on_any_tree_of_runs(
    notebook: Path, tree: str, trees: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVBENCH_RUNS", str(trees[tree]))
    said = [text for text in texts(notebook) if text.startswith("Not drawn: ")]
    assert (len(said) == 0) or tree != "made_up", said
    assert len(said) > 0 or tree != "failed"


def test_the_study_of_paged_attention_runs_on_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study(tmp_path)
    monkeypatch.setenv("KVBENCH_RUNS", str(tmp_path))
    texts(NOTEBOOKS / STUDY)


@pytest.mark.parametrize("notebook", ALL, ids=lambda file: file.stem)
def test_a_notebook_is_kept_without_outputs(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert all(
        cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code"
    )
