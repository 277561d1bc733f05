"""What each method keeps of the full cache's quality at eight budgets, beside eviction at random.

    python -m benchmarks.budget_curve --out benchmarks/results/budget_curve

The embedded model, held-out text and recall, read through the compressed cache; nothing is timed. Methods without a
budget of their own are shown at what they hold.
"""

from __future__ import annotations

import argparse
import itertools
import math
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch

from kvbench.asking import ask_likelihood, ask_recall
from kvbench.bench import Bench
from kvbench.configuration import ConfigError, check, compose
from kvbench.job import Job, Measured, Row
from kvbench.measure.host import LocalHost
from kvbench.runner import job_of
from kvbench.types import RunShape

BUDGETS = (0.05, 0.1, 0.15, 0.25, 0.35, 0.5, 0.75, 1.0)
CONTROL = "random_eviction"
NOT_METHODS = (  # caches of transformers' too
    "baseline", "transformers", "hf_quanto", "hf_hqq", "hf_fp8", "hf_offloaded", "hf_offloaded_static",
)  # fmt: skip
MEASURES = {"nll_delta_nats": "loss above the full cache (nats per token)", "recall_key_value": "values recalled"}


def methods() -> list[str]:
    """Return the name of every method there is."""
    names = (entry.name for entry in (files("kvbench.conf") / "strategy").iterdir())
    return sorted(n.removesuffix(".yaml") for n in names if n.endswith(".yaml") and n[:-5] not in NOT_METHODS)


def job_for(method: str, budget: float | None, samples: int) -> Job:
    """Return a method's job at a budget, or as it is."""
    asked = [] if budget is None else ["strategy.budget.unit=ratio", f"strategy.budget.amount={budget}"]
    return job_of(check(compose([f"strategy={method}", f"quality.recall_samples={samples}", "model=tiny", *asked])))


def rows_of(bench: Bench, method: str, samples: int) -> Iterator[Row]:
    """Yield a row per budget, one of them with a reason where it cannot be."""
    try:
        job_for(method, 0.5, samples)
        budgets: tuple[float | None, ...] = BUDGETS
    except ConfigError:
        budgets = (None,)
    for budget in budgets:
        started = time.monotonic()
        job = job_for(method, budget, samples)
        row: Row = {"method": method, "budget": budget}
        quality = job.quality
        longest = RunShape(prompt_lengths=(quality.context_tokens,), new_tokens=quality.scored_tokens + 1)
        reason = job.strategy.unsupported(bench.loaded.view, longest)
        if reason is None:
            row |= _asked(bench, job, longest)
        print(f"{method:22s} {budget or '-':>5}  {_shown(row, reason)}  {time.monotonic() - started:.1f} s", flush=True)
        yield {**row, "reason": reason or ""}


def _asked(bench: Bench, job: Job, run: RunShape) -> Row:
    bench.job = job
    bench.arms["strategy"] = replace(
        bench.arms["strategy"], strategy=job.strategy, model=job.strategy.prepare(bench.loaded.model)
    )
    baseline = bench.arms.pop("baseline")  # asked for recall once, as a method of its own
    bench.measured = Measured(rows={"strategy": {}})
    ask_recall(bench)
    bench.arms["baseline"] = baseline
    bench.measured.rows["baseline"] = {}
    ask_likelihood(bench)
    arm = bench.arms["strategy"]
    ids = torch.tensor(bench.sources["baseline"].windows(1, run.prompt_tokens + 1))
    cache = arm.cache(run)
    arm.prefill(cache, ids[:, :-1])
    full = baseline.strategy.allocated_bytes(bench.loaded.view, run)
    return {
        **bench.measured.rows["strategy"],
        "kv_allocated_bytes": cache.allocated_bytes(),
        "kv_share": cache.allocated_bytes() / full,
    }


def _shown(row: Row, reason: str | None) -> str:
    if reason is not None:
        return reason
    return (
        f"{100 * row['kv_share']:5.1f}% of the bytes  loss {row['nll_delta_nats']:+.3f}  "
        f"key-value {100 * row['recall_key_value']:3.0f}%  pass key {100 * row['recall_passkey']:3.0f}%"
    )


def draw(table: pd.DataFrame, measure: str, path: Path) -> None:
    """Draw a panel per method: quality against bytes, with the control's curve behind it."""
    known = table[table[measure].notna()]
    names = [name for name in known["method"].unique() if name != CONTROL]
    columns = 6
    rows = math.ceil(len(names) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.1 * columns, 1.75 * rows), sharex=True, sharey=True, layout="constrained"
    )
    control = known[known["method"] == CONTROL]
    for ax, name in itertools.zip_longest(axes.flat, names):
        if name is None:
            ax.set_axis_off()
            continue
        mine = known[known["method"] == name].sort_values("kv_share")
        ax.plot(100 * control["kv_share"], control[measure], color="0.65", linewidth=1)
        ax.plot(100 * mine["kv_share"], mine[measure], color="#0072B2", marker="o", markersize=3, linewidth=1.2)
        ax.set_title(name, fontsize="medium")
        ax.grid(color="0.92")
        ax.spines[["top", "right"]].set_visible(False)
    if measure.startswith("nll"):
        axes.flat[0].set_ylim(-0.02, float(control[measure].max()) * 1.6)
    figure.supxlabel("bytes of the cache after a prompt of 512 tokens (% of the full cache); grey: random_eviction")
    figure.supylabel(MEASURES[measure])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure, write the table and draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=16, help="recall samples of each task")
    parser.add_argument("--methods", nargs="*", default=None)
    parser.add_argument("--draw", action="store_true", help="only draw what is there")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "quality.parquet"
    if not arguments.draw:
        torch.set_grad_enabled(False)
        bench = Bench(job_for(CONTROL, 0.5, arguments.samples), lambda stage, share: None)
        torch.set_num_threads(LocalHost().num_cpus)
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout
        names = [name for name in arguments.methods or methods()]
        rows = [row for name in names for row in rows_of(bench, name, arguments.samples)]
        pd.DataFrame(rows).assign(commit=commit.strip()).to_parquet(file)
    table = pd.read_parquet(file)
    for measure in MEASURES:
        draw(table, measure, arguments.out / f"{measure}.png")


if __name__ == "__main__":
    main()
