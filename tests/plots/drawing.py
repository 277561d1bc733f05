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
from tests.results.factory import MIB, baseline, failed, row, steps, write

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


def served(waits: list[float]) -> list[dict[str, object]]:
    """Return requests that a scheduler let wait so long [s], and first come, first served, twice as long."""
    known = {"round": 0, "block": 0, "index_in_block": 0, "group": 0, "prompt_tokens": 99, "new_tokens": 4}
    known |= {"computed_tokens": 99, "reused_tokens": 0, "preemptions": 0}
    return [
        {
            "arm": arm,
            "number": number,
            "arrival_s": 1.0,
            "admitted_s": 1.0,
            "first_token_s": 1.0 + times * wait,
            "last_token_s": 9.0,
            **known,
        }
        for arm, times in (("strategy", 1), ("baseline", 2), ("baseline_again", 5))
        for number, wait in enumerate(waits)
    ]


def everything(runs: Path) -> None:
    """Write a tree in which every notebook finds something to draw, and a run that did not go well."""
    tree(runs)
    study(runs)
    blocks = {arm: [[9.0, 3.0, 3.0]] * 3 for arm in ("strategy", "baseline", "baseline_again")}
    timed = [step for arm, ms in blocks.items() for step in steps(ms, arm=arm)]
    timed += [{**step, "phase": "prefill"} for step in timed]
    no_budget = {"budget_unit": None, "budget_amount": None}
    stock = {"engine": "transformers", "comparison": "unpaired", "tokens_per_s": 80.0, **no_budget}
    write(runs, "stock", [row("transformers", **stock), baseline()], timed)
    write(runs, "again", [row("baseline", **no_budget), baseline()], timed)
    for name in ("offload", "disk"):
        lies = {"kv_allocated_bytes": MIB, "host_bytes" if name == "offload" else "disk_bytes": 33 * MIB, **no_budget}
        write(runs, name, [row(name, up_bytes_per_step=1e6, **lies), baseline()], timed, sweep="offload_study")
    write(runs, "vllm", [failed("vllm", "unavailable", "it is not there"), baseline()], sweep="survey25")
    of_requests = {"workload": "requests", "engine": "batcher", "requests": 2, "serve_s": 1.0, **no_budget}
    requested = [row("scheduling_prefix", **of_requests), baseline(**of_requests)]
    write(runs, "served", requested, timed, requests=served([0.5, 1.0]))
    answers: list[dict[str, object]] = [
        {"arm": arm, "task": "niah", "number": number, "turn": 0, "context_tokens": tokens, "question_tokens": 4}
        | {"answer_tokens": 4, "score": float(arm == "baseline" or depth < 1), "depth": depth, "answer": "1 2"}
        | {"chance": 0.0, "references_json": '["3 4"]'}
        for arm in ("strategy", "baseline")
        for number, (tokens, depth) in enumerate([(256, 0.0), (256, 1.0), (512, 0.0), (512, 1.0)])
    ]
    asked = {"workload": "niah", "score": 0.5, "score_delta": -0.5, "asked_samples": 4}
    write(runs, "asked", [row("snapkv", **asked), baseline(workload="niah", score=1.0)], timed, samples=answers)
