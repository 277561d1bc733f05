"""Axes to draw on, and what stands on them."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kvbench.results.load import load
from tests.results.factory import MIB, baseline, row, steps, write

mpl.use("agg")


def axes() -> Axes:
    """Return axes of a figure of their own."""
    return Figure(layout="constrained").subplots()


def lines(ax: Axes) -> dict[str, list[tuple[float, float]]]:
    """Return the points of each line that has a name."""
    found = {str(line.get_label()): np.asarray(line.get_xydata()) for line in ax.get_lines()}
    return {name: [(x, y) for x, y in points] for name, points in found.items() if not name.startswith("_")}


def study(runs: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write runs of no cache and of pages of 16 and 256 slots at two lengths, and return runs and steps."""
    for tokens in (256, 500):
        for name, size in [("baseline", 0), ("no_cache", 0), ("paged", 16), ("paged", 256)]:
            held = tokens + 64
            slots = -(-held // size) * size if size else held
            layout = {"page_tokens": size} if size else {}
            mine: dict[str, object] = {
                "config_json": json.dumps({"strategy": {"layout": layout}}),
                "prompt_tokens": tokens,
                "kernel": "native" if size else None,
            }
            known = {"budget_unit": None, "budget_amount": None, "saving": "none", **mine}
            known |= {"page_utilisation": held / slots if size else None, **_sizes(0 if name == "no_cache" else slots)}
            times = {arm: [[9.0, 3.0, 3.0]] * 2 for arm in ("strategy", "baseline", "baseline_again")}
            timed = [step for arm, ms in times.items() for step in steps(ms, arm=arm, prompt_tokens=tokens)]
            write(runs, f"{name}{size}at{tokens}", [row(name, **known), baseline(**mine, **_sizes(held))], timed)
    return load(runs), load(runs, steps=True)


def _sizes(slots: int) -> dict[str, object]:
    cache = slots * MIB // 256
    sizes = {"kv_allocated_bytes": cache, "steady_bytes": cache, "decode_peak_bytes": cache + MIB}
    return {**sizes, "prefill_peak_bytes": cache + 9 * MIB}


def tree(runs: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Write runs of two strategies at two lengths, and return runs and steps.

    A step of h2o takes 3 ms at 256 tokens and 4 ms at 512, one of the baseline 5 and 8, but for the first of a block
    and a disturbed block.
    """
    for tokens, ours, theirs in [(256, 3.0, 5.0), (512, 4.0, 8.0)]:
        timed = []
        for arm, ms in [("strategy", ours), ("baseline", theirs), ("baseline_again", 2 * theirs)]:
            blocks = steps([[99.0, ms, ms], [99.0, ms, ms], [99.0, 50.0, 50.0]], arm=arm, prompt_tokens=tokens)
            timed += [{**step, "is_clean": step["round"] != 2} for step in blocks]
        sizes = {"prompt_tokens": tokens, "kv_allocated_bytes": tokens // 256 * MIB}
        ours_sizes = {**sizes, "kv_allocated_bytes": tokens // 256 * MIB // 4}
        write(runs, f"r{tokens}", [row("h2o", **ours_sizes), baseline(**sizes)], timed)
    return load(runs), load(runs, steps=True)
