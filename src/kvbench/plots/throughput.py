"""What generates how much."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from kvbench.plots.methods import EVERY
from kvbench.plots.rows import looks_of_kinds, method_rows, name_rows


def throughput(runs: pd.DataFrame, steps: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw the tokens per second of what makes tokens in a way of its own, beside the full cache in our loop.

    Args:
        runs: as `method_rows` takes them.
        steps: of the same runs, as `kvbench.load(path, steps=True)` returns them.
        ax: to draw on.

    Returns:
        The plotted table: strategy, kind, tokens_per_s, low, high (p10 and p90 of blocks).
    """
    rows = method_rows(runs)
    chosen = rows[(rows["strategy"] == "baseline") | ~rows["engine"].isin(["eager", "compiled"])]
    rows = method_rows(runs[runs["run_id"].isin(chosen["run_id"])])
    spread = _block_spread(steps)
    speed = rows["tokens_per_s"].astype(float)
    ends = rows[["sweep", "run_id"]].join(spread, on=["sweep", "run_id"])
    table = rows[["label", "kind"]].set_axis(list(EVERY), axis=1)
    table = table.assign(tokens_per_s=speed, low=speed / ends["slow"], high=speed / ends["quick"])
    found = looks_of_kinds(rows)
    ax.barh(rows["place"], speed, height=0.55, color=[found[kind].color for kind in rows["kind"]], alpha=0.4)
    ax.hlines(rows["place"] + 0.17, table["low"], table["high"], color="black", linewidth=1.5)
    for place, number in zip(rows.loc[speed.notna(), "place"], speed.dropna(), strict=True):
        ax.annotate(f" {number:,.0f}", (0, place), va="center", fontsize="small", fontweight="bold")
    name_rows(rows, [ax])
    ax.set(xlabel="tokens generated per second; the line from slow blocks (p10) to quick ones (p90)", xlim=(0, None))
    return table


def _block_spread(steps: pd.DataFrame) -> pd.DataFrame:
    """Return how long slow and quick blocks of each run took over the mean of its blocks (p90 and p10)."""
    mine = steps[(steps["arm"] == "strategy") & steps["phase"].isin(["decode", "serve"])]
    length = mine.groupby(["sweep", "run_id", "block"])["index_in_block"].transform("size")
    kept = mine[(mine["index_in_block"] > 0) | (length == 1)]
    blocks = kept.groupby(["sweep", "run_id", "block"])["wall_ns"].mean().astype(float)
    over = blocks / blocks.groupby(level=[0, 1]).transform("mean")
    ends = over.groupby(level=[0, 1]).quantile([0.1, 0.9]).unstack()
    return ends.set_axis(["quick", "slow"], axis=1)
