"""Runs against each other."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from kvbench.plots.looks import require_one

_FASTER, _SLOWER, _EITHER = "#009E73", "#D55E00", "0.35"


def compared(pairs: pd.DataFrame, ax: Axes, *, phase: str = "decode") -> pd.DataFrame:
    """Draw how long a takes over b, each over its own baseline, with 95% intervals; 1 is no difference.

    Args:
        pairs: as `kvbench.compare` returns them, of one model and device.
        ax: to draw on.
        phase: decode | prefill | serve.

    Returns:
        The plotted table: name, ratio, low, high.
    """
    mine = pairs[pairs["phase"] == phase]
    require_one(mine, ["model", "batch_size", "device_name"])
    at = mine["prompt_tokens"].map("{:,} tokens".format) if mine["prompt_tokens"].nunique() > 1 else ""
    names = mine["strategy_a"] + " / " + mine["strategy_b"] + ((", " + at) if isinstance(at, pd.Series) else "")
    table = mine.assign(name=names)[["name", "ratio", "low", "high"]].reset_index(drop=True)
    for place, ratio, low, high in table[["ratio", "low", "high"]].itertuples():
        color = _FASTER if high < 1 else _SLOWER if low > 1 else _EITHER
        ax.plot([low, high], [place, place], color=color, linewidth=1.5)
        ax.plot(ratio, place, marker="<" if high < 1 else ">" if low > 1 else "o", color=color)
    ax.axvline(1, color="0.5", linewidth=1, zorder=0)
    ax.set_yticks(range(len(table)), table["name"])
    ax.invert_yaxis()
    ax.tick_params("y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.set(xlabel=f"{phase}: time of a over b (below 1 a is faster)")
    return table
