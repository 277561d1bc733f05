"""How long requests wait."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from kvbench.plots.looks import looks, require_one, tidy
from kvbench.results.labels import labels


def first_tokens(requests: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw which share of requests had their first token how long after they came, a line per scheduler.

    Args:
        requests: as `kvbench.load(path, requests=True)` returns them, of one model and device; all servings count.
        ax: to draw on.

    Returns:
        The plotted table: strategy, wait_s, share (of requests that had waited no longer).
    """
    served = requests[requests["arm"] != "baseline_again"]
    require_one(served, ["model", "workload", "device_name"])
    named = served.assign(label=labels(served), wait_s=served["first_token_s"] - served["arrival_s"])
    named["strategy"] = named["strategy"].mask(named["arm"] == "baseline", "baseline")
    named["label"] = named["label"].mask(named["arm"] == "baseline", "baseline")
    waits = named.sort_values(["label", "wait_s"])[["label", "wait_s"]].reset_index(drop=True)
    by_label = waits.groupby("label")["wait_s"]
    table = waits.assign(share=(by_label.cumcount() + 1) / by_label.transform("size"))
    for label, look in looks(named).items():
        line = table[table["label"] == label]
        ax.step(line["wait_s"], line["share"], where="post", label=label, color=look.color, linestyle=look.linestyle)
    tidy(ax)
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.set(xlabel="from arrival to first token (s)", ylabel="requests that have it", xlim=(0, None), ylim=(0, 1.02))
    ax.legend(frameon=False, loc="lower right", title="baseline: first come, first served")
    return table.rename(columns={"label": "strategy"})
