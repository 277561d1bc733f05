"""Bytes against context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import pandas as pd
from matplotlib.axes import Axes

from kvbench.plots.looks import draw_lines, legend, looks, require_one, tidy, tokens_axis
from kvbench.results.labels import BYTE_UNITS, best_unit, labels

Bytes = Literal["kv_allocated_bytes", "peak_bytes", "prefill_peak_bytes", "decode_peak_bytes"]

_CALLED: Mapping[Bytes, str] = {
    "kv_allocated_bytes": "cache allocated",
    "peak_bytes": "peak above the idle model",
    "prefill_peak_bytes": "peak while the prompt is read",
    "decode_peak_bytes": "peak while decoding",
}


def memory_against_context(runs: pd.DataFrame, ax: Axes, *, column: Bytes = "kv_allocated_bytes") -> pd.DataFrame:
    """Draw bytes against the length of the prompt, a line per strategy.

    Args:
        runs: as `kvbench.load` returns them, of one model, batch and device.
        ax: to draw on.
        column: which bytes.

    Returns:
        The plotted table: strategy (its budget behind it), prompt_tokens, bytes; the most where one ran repeatedly.
    """
    measured = runs[(runs["status"] == "ok") & runs[column].notna()]
    require_one(measured, ["model", "dtype", "batch_size", "device_name", "evidence"])
    named = measured.assign(label=labels(measured))
    most = named.groupby(["label", "prompt_tokens"])[column].max()
    table = most.rename("bytes").rename_axis(index=["strategy", "prompt_tokens"]).reset_index()
    unit, size = best_unit([float(table["bytes"].max())], BYTE_UNITS)
    draw_lines(table.assign(y=table["bytes"] / size), "prompt_tokens", "y", looks(named), ax)
    ax.set(xlabel="prompt (tokens)", ylabel=f"{_CALLED[column]} ({unit})", ylim=(0, None))
    tokens_axis(ax, table["prompt_tokens"])
    tidy(ax)
    legend(ax)
    return table
