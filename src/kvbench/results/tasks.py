"""Scores task by task, a column per strategy: what the mean over tasks hides."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvbench.results.labels import labels

_KIND = ["model", "weights", "workload", "prompt_tokens", "query_aware"]


def by_task(samples: pd.DataFrame) -> Iterator[tuple[dict[str, object], pd.DataFrame]]:
    """Yield what was asked of which model, and the mean score of each task (rows) and strategy (columns), from 0 to 1.

    Runs of one strategy and budget are taken together; a sample that several of them asked counts once.

    Args:
        samples: as `kvbench.load(path, samples=True)` returns them; those without a score are left out.
    """
    scored = samples[samples["score"].notna()]
    scored = scored.assign(label=labels(scored))
    for kind, mine in scored.groupby(_KIND, sort=False):
        once = mine.drop_duplicates(["label", "task", "number", "turn", "context_tokens", "references_json"])
        table = once.pivot_table(index="task", columns="label", values="score", aggfunc="mean", sort=False)
        order = sorted(table.columns, key=lambda label: label != "baseline")
        yield dict(zip(_KIND, kind, strict=True)), table[order]


def print_tasks(samples: pd.DataFrame, console: Console) -> None:
    """Show scores task by task, a table for each model and workload.

    Args:
        samples: as `kvbench.load(path, samples=True)` returns them.
        console: to print on.

    Raises:
        ValueError: if nothing was scored.
    """
    found = list(by_task(samples))
    if not found:
        raise ValueError("no answer here has a score: run workload=recall, niah, ruler, longbench or multi_turn first.")
    for kind, table in found:
        aware = ", question in the cache" if kind["query_aware"] else ""
        what = f" | {kind['workload']}: at most {kind['prompt_tokens']:,} tokens{aware} | score in %"
        shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        shown.add_column(Text("task", "bold"))
        for label in table.columns:
            shown.add_column(Text(label, "bold"), justify="right")
        for task, scores in (100 * table).iterrows():
            shown.add_row(str(task), *("-" if pd.isna(score) else f"{score:.1f}" for score in scores))
        if len(table) > 1:
            shown.add_section()
            shown.add_row("mean", *(f"{score:.1f}" for score in 100 * table.mean()))
        console.print(Text(), Text.assemble((str(kind["model"]), "bold"), what), Text(), shown, sep="\n")
