"""Scores task by task: a column per strategy, the baseline's first, every sample once."""

from __future__ import annotations

import io

import pandas as pd
import pytest
from rich.console import Console

from kvbench.results.tasks import by_task, print_tasks


def answers(strategy: str, task: str, scores: list[float | None], **more: object) -> list[dict[str, object]]:
    """Return samples as they are loaded."""
    known = {"model": "tiny", "weights": "embedded", "workload": "ruler", "prompt_tokens": 512, "query_aware": False}
    budget: dict[str, object] = {"budget_unit": None, "budget_amount": None}
    if strategy != "baseline":
        budget = {"budget_unit": "ratio", "budget_amount": 0.25}
    known |= {"context_tokens": 500, "references_json": '["x"]'}
    return [
        {**known, **budget, "strategy": strategy, "task": task, "number": number, "turn": 0, "score": score, **more}
        for number, score in enumerate(scores)
    ]


def table(*samples: list[dict[str, object]]) -> pd.DataFrame:
    """Return the scores of samples of one kind."""
    ((_, found),) = by_task(pd.DataFrame([row for rows in samples for row in rows]))
    return found


H2O = [answers("h2o", "vt", [0.0, 0.5]), answers("h2o", "cwe", [0.25, 0.75])]
FULL = [answers("baseline", "vt", [1.0, 1.0]), answers("baseline", "cwe", [1.0, 0.5])]


def test_a_column_is_a_strategy_with_its_budget_and_the_baseline_comes_first() -> None:
    found = table(*H2O, *FULL)
    assert found.columns.tolist() == ["baseline", "h2o 25%"]
    assert found.loc["vt"].tolist() == [1.0, 0.25]
    assert found.loc["cwe"].tolist() == [0.75, 0.5]


def test_a_sample_that_several_runs_asked_counts_once() -> None:
    assert table(*FULL, answers("baseline", "vt", [1.0, 1.0, 0.4])).loc["vt"].tolist() == pytest.approx([0.8])


def test_other_samples_of_the_same_numbers_count_too() -> None:
    others = answers("baseline", "vt", [0.0, 0.0], references_json='["y"]')
    assert table(*FULL, others).loc["vt"].tolist() == [0.5]


def test_what_was_asked_otherwise_stands_apart() -> None:
    aware = answers("h2o", "vt", [1.0, 1.0], query_aware=True)
    kinds = [(kind["query_aware"], found.loc["vt"].tolist()) for kind, found in by_task(pd.DataFrame(H2O[0] + aware))]
    assert kinds == [(False, [0.25]), (True, [1.0])]


def test_the_table_ends_with_the_mean_over_tasks() -> None:
    out = io.StringIO()
    print_tasks(pd.DataFrame([row for rows in (*H2O, *FULL) for row in rows]), Console(file=out, width=100))
    lines = [line.split() for line in out.getvalue().splitlines() if line.strip()]
    assert lines[-1] == ["mean", "87.5", "37.5"]
    assert ["vt", "100.0", "25.0"] in lines
    assert "tiny | ruler: at most 512 tokens | score in %" in out.getvalue()


def test_answers_without_scores_are_told_so() -> None:
    with pytest.raises(ValueError, match="no answer here has a score: run workload=recall"):
        print_tasks(pd.DataFrame(answers("baseline", "answers", [None])), Console(file=io.StringIO()))
