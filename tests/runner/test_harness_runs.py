"""The harness' tasks through our engine: the full cache scores, sample by sample, what the harness scores by itself.

Skipped where lm-eval, or accelerate, which its own model needs, is not installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kvbench
from tests.runner.test_runner import SHORT
from tests.support import harness_tasks

pytest.importorskip("lm_eval")
pytest.importorskip("accelerate")

ROOT = Path(__file__).parents[2]
LINE = [
    "quality=none",
    "workload=lm_eval",
    "workload.prompt_tokens=320",
    "workload.batch_size=2",
    "strategy=h2o",
    "strategy.budget.amount=48",
    "strategy.budget.unit=tokens",
]


def python(folder: Path, *arguments: str) -> None:
    """Run a process without a network, and print what it prints."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder.parent / "hub"), "COLUMNS": "200"}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)  # noqa: T201


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tasks."""
    return harness_tasks.write(tmp_path_factory.mktemp("harness") / "tasks")


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, dict[str, Any]]:
    """What the harness finds by itself, and what is refused."""
    file = folder.parent / "told.json"
    python(folder, "-m", "tests.support.harness_tasks", str(folder), str(file))
    found: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return found


def test_the_full_cache_scores_what_the_harness_scores_by_itself(
    folder: Path, told: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    chosen = [f"workload.path={folder}", "workload.tasks=[hidden,going_on]", f"runs={tmp_path}"]
    python(folder, "run.py", *SHORT, *LINE, *chosen)
    rows = kvbench.load(tmp_path).set_index("arm")
    assert rows["query_aware"].all()
    samples = kvbench.load(tmp_path, samples=True).sort_values("number")
    for task, through in (("hidden", "word"), ("going_on", "none")):
        alone = [one for one in told["alone"][task] if one["filter"] == through]
        mine = samples[samples["task"] == task].pivot(index="number", columns="arm", values=["answer", "score"])
        assert mine["answer", "baseline"].tolist() == [one["answer"] for one in alone]
        assert mine["score", "baseline"].tolist() == [one["score"] for one in alone]
        assert mine["score", "baseline"].nunique() > 1
        assert (mine["answer", "strategy"] != mine["answer", "baseline"]).any()
        print(task, len(alone), "equal;", {arm: mine["score", arm].mean() for arm in rows.index})  # noqa: T201
    means = samples[samples["arm"] == "baseline"].groupby("task")["score"].mean()
    assert rows.loc["baseline"]["score"] == pytest.approx(means.mean())


def test_what_cannot_be_asked_or_scored_is_refused(told: dict[str, dict[str, Any]]) -> None:
    for task, message in (
        ("chosen", "chosen compares likelihoods (output_type: multiple_choice)"),
        ("warm", "warm generates with do_sample=True, but answers here are greedy"),
        ("corpus", "bleu of corpus is of all answers together"),
        ("coded", "coded runs code that a model has written"),
        ("far", "data of workload.tasks=[far] is not in the local cache and cannot be fetched"),
        ("hiden", "workload.tasks has hiden, which is no task; "),
    ):
        assert message in told["refused"][task]
