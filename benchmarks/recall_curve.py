"""What eviction and packing leave of recall, by how much of the cache is kept: answers, with intervals.

    python -m benchmarks.recall_curve --out benchmarks/results/recall_curve

The embedded models are asked for key-value pairs (workload=recall) and for those of RULER's needles that have their
notation (workload=ruler workload.wording=marks), through the compressed cache, the question after compression. Nothing
is timed. A run that was killed goes on from the answers it has.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.ticker import PercentFormatter

from kvbench.answering import ask
from kvbench.bench import Bench
from kvbench.columns import held
from kvbench.configuration import check, compose
from kvbench.job import Job, Measured, Row
from kvbench.measure.host import LocalHost
from kvbench.plots.looks import looks
from kvbench.quality.scores import mean_score, of_samples, score_delta
from kvbench.results.journal import Journal
from kvbench.runner import job_of
from kvbench.types import RunShape

CONTEXT, ROOM = 512, 64  # tokens that are compressed; more than questions and answers take
EVICTING = ("h2o", "snapkv", "knorm", "attention_sink", "random_eviction")
PACKING = "kivi2"
KEPT = (0.125, 0.25, 0.5, 0.75, 1.0)
ASKED = {
    "recall": ["workload=recall", f"workload.prompt_tokens={CONTEXT}"],
    "ruler": [
        "workload=ruler",
        "workload.wording=marks",
        f"workload.prompt_tokens={CONTEXT}",
        "workload.batch_size=8",
        "workload.tasks=[niah_single_1,niah_single_2,niah_multikey_1,niah_multikey_2,niah_multiquery]",
    ],
}


def job_for(model: str, asked: str, samples: int, *strategy: str) -> Job:
    """Return the job of a strategy that is asked something."""
    line = [f"model={model}", *ASKED[asked], f"workload.samples={samples}", *strategy]
    return job_of(check(compose(line)))


def budgets(name: str) -> Iterator[tuple[float | None, list[str]]]:
    """Yield shares of the context that are kept, and how they are asked for; at 1 nothing leaves while decoding."""
    if name == PACKING:
        yield None, [f"strategy={name}"]
        return
    for share in KEPT:
        tokens = round(share * CONTEXT) if share < 1 else CONTEXT + ROOM
        yield share, [f"strategy={name}", "strategy.budget.unit=tokens", f"strategy.budget.amount={tokens}"]


def rows_of(bench: Bench, model: str, asked: str, samples: int, journals: Path) -> Iterator[Row]:
    """Yield a row per strategy, budget and task."""
    full = answers(bench, "baseline", journals / f"{model}-{asked}-baseline.jsonl")
    yield from told(bench, {"strategy": "baseline", "kept": 1.0, "kv_share": 1.0}, full, full)
    for name in (*EVICTING, PACKING):
        for share, line in budgets(name):
            job = job_for(model, asked, samples, *line)
            bench.job = job
            bench.arms["strategy"] = replace(
                bench.arms["baseline"],
                name="strategy",
                strategy=job.strategy,
                model=job.strategy.prepare(bench.loaded.model),
            )
            mine = answers(bench, "strategy", journals / f"{model}-{asked}-{name}-{share}.jsonl")
            yield from told(bench, {"strategy": name, "kept": share, "kv_share": kv_share(bench)}, mine, full)


def answers(bench: Bench, arm: str, journal: Path) -> list[Row]:
    """Return an arm's answers."""
    bench.measured = Measured(rows={})
    with Journal(journal) as found:
        return ask(bench, [arm], found).samples


def kv_share(bench: Bench) -> float:
    """Return the bytes that an arm uses of a context over those of the full cache."""
    run = RunShape(prompt_lengths=(CONTEXT,), new_tokens=ROOM)
    ids = torch.tensor(bench.sources["baseline"].windows(1, CONTEXT))
    used = []
    for arm in (bench.arms["strategy"], bench.arms["baseline"]):
        cache = arm.cache(run)
        arm.prefill(cache, ids)
        used.append(held(arm, cache, run)["kv_used_bytes"])
    return float(used[0] / used[1])


def told(bench: Bench, known: Row, mine: list[Row], full: list[Row]) -> Iterator[Row]:
    """Yield a row per task, with the score and how far it is from the full cache's."""
    for task in sorted({row["task"] for row in mine}):
        scores, base = (of_samples([row for row in rows if row["task"] == task], "score") for rows in (mine, full))
        score, delta = mean_score(scores), score_delta(scores, base)
        same = [a["answer"] == b["answer"] for a, b in zip(mine, full, strict=True) if a["task"] == task]
        print(f"{known['strategy']:16s} {known['kept'] or '-':>6}  {task:16s} {score.value:6.1%}", flush=True)
        yield {
            **known,
            "model": bench.job.spec.name,
            "task": task,
            "samples": len(scores),
            "score": score.value,
            "score_low": score.low,
            "score_high": score.high,
            "score_delta": delta.value,
            "score_delta_low": delta.low,
            "score_delta_high": delta.high,
            "same_share": sum(same) / len(same),
        }


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw a panel per task and model: the score against the bytes, with its interval."""
    models, tasks = sorted(table["model"].unique()), ["key_value", *sorted(set(table["task"]) - {"key_value"})]
    figure, axes = plt.subplots(
        len(models),
        len(tasks),
        figsize=(2.3 * len(tasks), 2.4 * len(models) + 0.8),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    found = looks(table.assign(label=table["strategy"])[["strategy", "label"]].drop_duplicates())
    for line, model in zip(axes, models, strict=True):
        for ax, task in zip(line, tasks, strict=True):
            part = table[(table["model"] == model) & (table["task"] == task)]
            for name, look in found.items():
                mine = part[part["strategy"] == name].sort_values("kv_share")
                if name == "baseline":
                    ax.axhline(float(mine["score"].iloc[0]), color="0.6", linewidth=1, linestyle="--", zorder=0)
                    continue
                kept, score, low, high = (mine[c].to_numpy() for c in ("kv_share", "score", "score_low", "score_high"))
                ax.errorbar(
                    kept,
                    score,
                    yerr=[score - low, high - score],
                    label=name,
                    color=look.color,
                    marker=look.marker,
                    markersize=4,
                    linewidth=1.1,
                    elinewidth=0.8,
                )
            ax.set_title(f"{task}\n{model}", fontsize="small")
            ax.grid(color="0.92")
            ax.spines[["top", "right"]].set_visible(False)
    axes[0][0].set(xlim=(0, 1.08), ylim=(0, 1.04))
    for axis in (axes[0][0].xaxis, axes[0][0].yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.supxlabel(f"bytes of the cache after {CONTEXT} tokens, of the full cache's (dashed: its score)", fontsize=9)
    figure.supylabel("answers right, with 95% intervals", fontsize=9)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Ask, write the table and draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=64, help="of key-value recall; a third as many of each needle")
    parser.add_argument("--models", nargs="*", default=["tiny", "tiny-mha"])
    parser.add_argument("--draw", action="store_true", help="only draw what is there")
    arguments = parser.parse_args()
    journals = arguments.out / "answers"
    file = arguments.out / "scores.parquet"
    if not arguments.draw:
        journals.mkdir(parents=True, exist_ok=True)
        rows = []
        for model in arguments.models:
            for asked, samples in (("recall", arguments.samples), ("ruler", max(1, arguments.samples // 3))):
                bench = Bench(job_for(model, asked, samples, "strategy=baseline"), lambda stage, share: None)
                torch.set_num_threads(LocalHost().num_cpus)
                rows += list(rows_of(bench, model, asked, samples, journals))
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout
        pd.DataFrame(rows).assign(commit=commit.strip()).to_parquet(file)
    table = pd.read_parquet(file)
    draw(table, arguments.out / "scores.png")
    cells = ["model", "strategy", "kept"]
    shown = table.pivot_table(index=cells, columns="task", values="score", dropna=False).dropna(how="all")
    shown.insert(0, "bytes", table.groupby(cells, dropna=False)["kv_share"].first())
    print((100 * shown).round().to_string())
    widest = max((table["score"] - table["score_low"]).max(), (table["score_high"] - table["score"]).max())
    print(f"intervals reach up to {100 * widest:.0f} points to one side")
    kept = table[(table["kept"] == 1) & (table["strategy"] != "baseline")]
    print(
        f"at 100%: {kept['same_share'].min():.0%} of the answers are the full cache's, in the least of {len(kept)} rows"
    )


if __name__ == "__main__":
    main()
