"""Time per token against context."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from kvbench.plots.looks import draw_lines, legend, looks, require_one, tidy, tokens_axis
from kvbench.results.labels import labels


def decode_latency(steps: pd.DataFrame, ax: Axes) -> pd.DataFrame:
    """Draw the median time of a decode step against context, a line per strategy with a band from p10 to p90.

    Disturbed blocks and the first step of each block are left out, as everywhere.

    Args:
        steps: as `kvbench.load(path, steps=True)` returns them, of one model, batch and device.
        ax: to draw on.

    Returns:
        The plotted table: strategy (its budget behind it), context (tokens), p10, p50, p90 (ms).
    """
    kept = _kept(steps)
    require_one(kept, ["model", "batch_size", "device_name"])
    spread = kept.groupby(["label", "context"])["ms"].quantile([0.1, 0.5, 0.9]).unstack()
    table = spread.set_axis(["p10", "p50", "p90"], axis=1).rename_axis(index=["strategy", "context"]).reset_index()
    found = looks(kept)
    draw_lines(table, "context", "p50", found, ax)
    for label, look in found.items():
        line = table[table["strategy"] == label]
        ax.fill_between(line["context"].to_numpy(dtype=float), line["p10"], line["p90"], color=look.color, alpha=0.12)
    ax.set(xlabel="context (tokens)", ylabel="time per decode step (ms)", ylim=(0, None))
    tokens_axis(ax, table["context"])
    tidy(ax)
    legend(ax)
    return table


def _kept(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the decode steps that count, with their label, time and the context they began with."""
    decode = steps[(steps["phase"] == "decode") & steps["is_clean"] & (steps["arm"] != "baseline_again")]
    context = decode.groupby(["sweep", "run_id"])["position"].transform("min")
    length = decode.groupby(["sweep", "run_id", "arm", "block"])["index_in_block"].transform("size")
    ms = decode["event_ms"].where(decode["event_ms"].notna(), decode["wall_ns"] / 1e6).astype(float)
    named = decode.assign(ms=ms, context=context, label=labels(decode))
    return named[(named["index_in_block"] > 0) | (length == 1)]
