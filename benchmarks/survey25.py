"""The survey's 25 strategies: one table and six figures, from the runs that the experiment left.

    python run.py +experiment=survey25                          # on a machine that does nothing else
    python -m benchmarks.survey25 --out benchmarks/results/survey25

Refuses runs of which two are the same, but for the names that `docs/methods.md` calls the same: those are measured
apart as well, and what lies between them is noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

import kvbench
from benchmarks.family import markdown
from kvbench import plots
from kvbench.cli.catalogue import aliases, categories
from kvbench.folders import cache_folder
from kvbench.plots.rows import method_rows
from kvbench.results.cells import NOTHING
from kvbench.results.compare import compare
from kvbench.results.labels import bytes_text, number

RUN = ["sweep", "run_id"]


def check_apart(runs: pd.DataFrame, steps: pd.DataFrame, named: Mapping[str, str]) -> None:
    """Raise if two names have one configuration that nobody said was the same, or two runs the same samples.

    Args:
        runs: of the survey.
        steps: theirs.
        named: whose other name a strategy is.
    """
    mine = runs[runs["arm"] == "strategy"]
    said = {frozenset(pair) for pair in named.items()}
    for _, names in mine.groupby("config_json")["strategy"]:
        found = frozenset(names)
        if len(found) > 1 and found not in said:
            raise ValueError(f"{' and '.join(sorted(found))} are one configuration, and no yaml says so.")
    timed = steps.sort_values([*RUN, "phase", "arm", "block", "index_in_block"])
    samples = timed.groupby([*RUN, "arm"])["wall_ns"].agg(tuple)
    twice = samples[samples.duplicated(keep=False)]
    if len(twice):
        raise ValueError(f"runs with the very same samples: {sorted(set(twice.index.get_level_values('run_id')))}.")


def controls(root: Path, named: Mapping[str, str]) -> dict[str, str]:
    """Return a strategy's other name, by its name, and where there is an interval how long it takes over that."""
    pairs = compare(root, root)
    pairs = pairs[pairs["phase"].isin(["decode", "serve"])].set_index(["strategy_a", "strategy_b"])
    found = dict(named)
    for pair in named.items():
        for _, row in pairs[pairs.index == pair].iterrows():
            found[pair[0]] = f"{pair[1]}, {row['ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    return found


def lines(runs: pd.DataFrame, same: Mapping[str, str]) -> pd.DataFrame:
    """Return what people read: a line for each of the strategies.

    Args:
        runs: of the survey, with categories.
        same: what is said of a strategy that is another's other name.
    """
    rows = method_rows(runs)
    made = []
    for _, row in rows.iterrows():
        share = row["kv_allocated_bytes"] / row["kv_allocated_bytes_full"]
        step, full = row["decode_p50_ms"], row["decode_p50_ms_full"]
        recall = row["recall_key_value"]
        made.append(
            {
                "strategy": row["label"],
                "kind": row["kind"],
                "saving": row["saving"],
                "fidelity": row["fidelity"].replace("_", " "),
                "KV": _or_nothing(row["kv_allocated_bytes"], bytes_text),
                "of full": _or_nothing(share, lambda share: f"{number(100 * share)}%"),
                "peak": _or_nothing(row["peak_bytes"], bytes_text),
                "TTFT ms": _or_nothing(row["ttft_ms"], number),
                "step ms (full)": NOTHING if pd.isna(step) else f"{number(step)} ({_or_nothing(full, number)})",
                "ratio": _interval(row),
                "tokens/s": _or_nothing(row["tokens_per_s"], number),
                "loss": _or_nothing(row["nll_delta_nats"], "{:+.3f}".format),
                "recall": _or_nothing(recall, "{:.0%}".format),
                "says": _said(row, same),
            }
        )
    return pd.DataFrame(made)


def _or_nothing(value: float, text: Callable[[float], str]) -> str:
    return NOTHING if pd.isna(value) else text(value)


def _interval(row: pd.Series) -> str:
    if pd.isna(row["ratio"]):
        return NOTHING
    return f"{row['ratio']:.3f} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]"


def _said(row: pd.Series, same: Mapping[str, str]) -> str:
    if row["status"] != "ok":
        return f"{row['status'].replace('_', ' ')}: {row['reason']}"
    if row["strategy"] in same:
        return f"the same as {same[row['strategy']]}"
    if row["comparison"] == "unpaired":
        return "unpaired"
    return "" if pd.isna(row["verdict"]) or row["verdict"] == "none" else str(row["verdict"]).replace("_", " ")


def draw(runs: pd.DataFrame, steps: pd.DataFrame, out: Path) -> None:
    """Draw the six figures."""
    single: dict[str, tuple[tuple[float, float], Callable[..., object]]] = {
        "timing": ((7.5, 8.0), plots.step_times),
        "memory": ((7.5, 8.0), plots.bytes_held),
        "trade_off": ((8.5, 6.5), plots.trade_off),
        "categories": ((7.5, 5.0), plots.by_category),
        "overview": ((11.5, 8.0), plots.overview),
    }
    said = plots.caption(runs)
    for name, (size, plot) in single.items():
        figure, ax = plt.subplots(figsize=size, layout="constrained")
        plot(runs, ax)
        shaded = "" if name in ("trade_off", "categories") else ". Shaded: one method under two names."
        _keep(figure, said + shaded, out / f"{name}.png")
    figure, ax = plt.subplots(figsize=(7.5, 3.5), layout="constrained")
    plots.throughput(runs, steps, ax)
    _keep(figure, said, out / "throughput.png")


def _keep(figure: Figure, said: str, file: Path) -> None:
    plots.sign(figure, said)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def main() -> None:
    """Write the rows, the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/survey25"), help="folder of the experiment")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs, steps = kvbench.load(arguments.runs), kvbench.load(arguments.runs, steps=True)
    check_apart(runs, steps, aliases())
    runs["reason"] = runs["reason"].str.replace(str(cache_folder()), "the cache folder")
    runs.to_parquet(arguments.out / "runs.parquet")
    steps.to_parquet(arguments.out / "steps.parquet")
    known = runs.assign(category=runs["strategy"].map(categories()))
    text = markdown(lines(known, controls(arguments.runs, aliases())))
    (arguments.out / "table.md").write_text(text, encoding="utf-8")
    draw(known, steps, arguments.out)
    print(text, end="")


if __name__ == "__main__":
    main()
