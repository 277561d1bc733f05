"""Times over the full cache's, with their intervals."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from kvbench.plots.looks import require_one
from kvbench.results.labels import labels

Ratio = Literal["ratio", "ttft_ratio"]
_CALLED = {"ratio": "a decode step", "ttft_ratio": "the prefill"}


def time_ratios(runs: pd.DataFrame, ax: Axes, *, column: Ratio = "ratio") -> pd.DataFrame:
    """Draw each strategy's time over the full cache's with its 95% interval, the fastest on top.

    Hollow marks are of steps whose cache fits in the processor's own: they allow no verdict. The grey band is how far
    the full cache was from itself, where that was measured.

    Args:
        runs: as `kvbench.load` returns them, of one model, workload, lengths and device.
        ax: to draw on.
        column: of decoding, or of the prefill.

    Returns:
        The plotted table: strategy (its budget behind it), ratio, low, high, is_overhead; a row for each run.
    """
    low, high = f"{column}_low", f"{column}_high"
    timed = runs[(runs["status"] == "ok") & (runs["arm"] == "strategy") & runs[column].notna() & runs[low].notna()]
    require_one(
        timed, ["model", "weights", "workload", "batch_size", "prompt_tokens", "query_aware", "device_name", "evidence"]
    )
    table = pd.DataFrame(
        {
            "strategy": labels(timed),
            "ratio": timed[column],
            "low": timed[low],
            "high": timed[high],
            "is_overhead": timed["regime"].eq("overhead_bound").fillna(value=False).astype(bool),
        }
    ).sort_values("ratio", ignore_index=True)
    if column == "ratio" and timed["aa_low"].notna().any():
        ax.axvspan(timed["aa_low"].min(), timed["aa_high"].max(), color="0.92", zorder=0)
    ax.axvline(1, color="0.4", linewidth=1, zorder=1)
    places = np.arange(len(table))[::-1]
    for place, ratio, start, end, is_hollow in zip(
        places, table["ratio"], table["low"], table["high"], table["is_overhead"], strict=True
    ):
        ax.plot([start, end], [place, place], color="#0072B2", linewidth=1.5, zorder=2)
        face = "white" if is_hollow else "#0072B2"
        ax.plot(ratio, place, marker="o", color="#0072B2", markerfacecolor=face, zorder=3)
    ax.set_yticks(places, table["strategy"].tolist())
    ax.set(
        xlabel=f"time of {_CALLED[column]} over the full cache's, with its 95% interval", ylim=(-0.7, len(table) - 0.3)
    )
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params("y", length=0)
    ax.grid(axis="x", color="0.9", linewidth=0.8)
    ax.set_axisbelow(True)
    return table
