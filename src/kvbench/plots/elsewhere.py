"""Where the bytes of caches lie."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from kvbench.plots.looks import require_one, tidy
from kvbench.results.labels import BYTE_UNITS, best_unit, labels

_PLACES = {  # columns, how they are called, colours and hatches that a copier leaves apart
    "kv_allocated_bytes": ("device", "#0072B2", ""),
    "host_bytes": ("host", "#E69F00", "///"),
    "disk_bytes": ("disk", "#009E73", "..."),
}


def where_bytes_lie(runs: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw the bytes of each method's cache on the device, on the host and on disk, for the longest prompt.

    Args:
        runs: as `kvbench.load` returns them, of one model, batch and device.
        ax: to draw on.

    Returns:
        The plotted table: strategy (its budget behind it), kv_allocated_bytes, host_bytes, disk_bytes.
    """
    columns = list(_PLACES)
    held = runs[(runs["status"] == "ok") & runs["kv_allocated_bytes"].notna()]
    held = held[held["prompt_tokens"] == held["prompt_tokens"].max()]
    require_one(held, ["model", "dtype", "batch_size", "device_name"])
    if not (held[["host_bytes", "disk_bytes"]].fillna(0) > 0).to_numpy().any():
        raise ValueError("nothing lies elsewhere: run +experiment=offload_study, or any strategy with a placement.")
    named = held.assign(strategy=labels(held)).drop_duplicates("strategy", keep="last")
    table = named[["strategy", *columns]].fillna(0).astype(dict.fromkeys(columns, "int64")).reset_index(drop=True)
    unit, size = best_unit([float(table[columns].sum(axis=1).max())], BYTE_UNITS)
    left = pd.Series(0.0, index=table.index)
    for column, (name, color, hatch) in _PLACES.items():
        width = table[column] / size
        ax.barh(table["strategy"], width, left=left, color=color, hatch=hatch, edgecolor="white", label=name)
        left += width
    tidy(ax)
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", color="0.9", linewidth=0.8)
    ax.invert_yaxis()
    ax.set(xlabel=f"bytes of the cache ({unit})")
    ax.legend(frameon=False)
    return table
