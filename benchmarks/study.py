"""A study whose experiment has run: its rows, every timed step, a table and, where times say something, a figure.

    python run.py +experiment=paged_attention_study             # on a machine that does nothing else
    python -m benchmarks.study paged_attention_study --out benchmarks/results/paged_attention_study
    python -m benchmarks.study kvpr_study --out benchmarks/results/kvpr_study
    python -m benchmarks.study fixed_size_table --out benchmarks/results/fixed_size_table

The experiments are started alike, each by its name.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

import kvbench
from benchmarks.family import markdown
from kvbench import plots
from kvbench.results.cells import NOTHING
from kvbench.results.labels import bytes_text, number


def lines(runs: pd.DataFrame) -> pd.DataFrame:
    """Return what people read: a line for each of the strategy's rows; columns that say nothing are left out."""
    rows = runs[runs["arm"] == "strategy"].sort_values(["prompt_tokens", "created_at"])
    full = runs[runs["arm"] == "baseline"].set_index("run_id")["decode_p50_ms"]
    made = pd.DataFrame(
        {
            "tokens": rows["prompt_tokens"].map("{:,}".format),
            "row": rows["overrides"].map(chosen),
            "KV": _each(rows["kv_allocated_bytes"], bytes_text),
            "elsewhere": _each(rows["host_bytes"].replace(0, None), bytes_text),
            "peak": _each(rows["peak_bytes"], bytes_text),
            "TTFT ms": _each(rows["ttft_ms"], number),
            "step ms": _each(rows["decode_p50_ms"], number),
            "full's": _each(rows["run_id"].map(full), number),
            "ratio": [_interval(row) for _, row in rows.iterrows()],
            "loss": _each(rows["nll_delta_nats"], "{:+.3f}".format),
            "recall": _each(rows["recall_key_value"], "{:.0%}".format),
            "says": [_said(row) for _, row in rows.iterrows()],
        }
    )
    return made.loc[:, [(column != NOTHING).any() for _, column in made.items()]]


def chosen(overrides: str) -> str:
    """Return what tells a row from the others of its sweep."""
    words = [word.partition("=") for word in overrides.split()]
    names = [value for name, _, value in words if name in ("+row", "strategy")]
    return names[-1] if names else "baseline"


def _each(numbers: pd.Series, text: Callable[[float], str]) -> list[str]:
    return [NOTHING if pd.isna(value) else text(value) for value in numbers]


def _interval(row: pd.Series) -> str:
    if pd.isna(row["ratio"]):
        return NOTHING
    return f"{row['ratio']:.3f} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]"


def _said(row: pd.Series) -> str:
    if row["status"] != "ok":
        return f"{row['status'].replace('_', ' ')}: {row['reason']}"
    return "" if pd.isna(row["verdict"]) or row["verdict"] == "none" else str(row["verdict"]).replace("_", " ")


def pages(runs: pd.DataFrame, steps: pd.DataFrame) -> Figure:
    """Draw time, peak and use of pages against the text's length."""
    runs, steps = (plots.named_by_page(frame, runs) for frame in (runs, steps))
    figure, axes = plt.subplots(2, 2, figsize=(11.5, 8.0), layout="constrained")
    names = ["baseline", "paged 16", "no_cache"]
    for ax in axes[0]:
        times = plots.decode_latency(steps[steps["strategy"].isin(names)], ax)
    axes[0, 1].set_ylim(top=2 * times.loc[times["strategy"] != "no_cache", "p50"].max())  # the same from nearby
    plots.memory_against_context(runs[runs["strategy"].isin(names)], axes[1, 0], column="peak_bytes")
    plots.page_utilisation(runs[runs["page_tokens"].notna()], axes[1, 1])
    return figure


def ratios(runs: pd.DataFrame, steps: pd.DataFrame) -> Figure:
    """Draw the time of a step over the full cache's."""
    figure, ax = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    mine = runs[(runs["arm"] == "strategy") & runs["ratio"].notna()]
    plots.time_ratios(mine.assign(strategy=mine["overrides"].map(chosen)), ax)
    return figure


FIGURES = {"paged_attention_study": pages, "kvpr_study": ratios}


def main() -> None:
    """Write the rows, the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=(*FIGURES, "fixed_size_table"))
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the experiments")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    folder = arguments.runs / arguments.name
    runs, steps = kvbench.load(folder), kvbench.load(folder, steps=True)
    runs.to_parquet(arguments.out / "runs.parquet")
    steps.to_parquet(arguments.out / "steps.parquet")
    text = markdown(lines(runs))
    (arguments.out / "table.md").write_text(text, encoding="utf-8")
    if arguments.name in FIGURES:
        figure = FIGURES[arguments.name](runs, steps)
        plots.sign(figure, plots.caption(runs))
        figure.savefig(arguments.out / f"{arguments.name}.png", dpi=130)
    print(text, end="")


if __name__ == "__main__":
    main()
