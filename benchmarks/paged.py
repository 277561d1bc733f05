"""A decode step through pages, and what it holds, beside the full cache.

    python -m benchmarks.paged --out benchmarks/results/paged

Model `llama8` with random weights on one CPU thread. All sizes of pages are timed in turn in one process, with a 95%
interval over rounds, by the time that the processor gave this process: other work on the machine takes none of it but
what it pushes out of the processor's caches. Peaks are of a fresh process each. Writes one parquet of ratios and one of
timed steps.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch

from benchmarks.goals import BLOCK, Desk, Goal, _peak, goal, job_for
from benchmarks.packed import NO_GOAL, shown
from benchmarks.tables import keep
from kvbench.engines.arm import DecodeArm
from kvbench.measure.clock import HostClock
from kvbench.measure.host import LocalHost
from kvbench.measure.paired import measure_paired
from kvbench.measure.samples import again
from kvbench.types import RunShape

MODEL = "llama8"
AT_MOST, PEAK_AT_MOST = 1.10, 1.06  # of pages of 16 tokens or more
RAGGED = (2048, 1536, 1024, 512)


class ProcessorClock(HostClock):
    """The time that the processor gave this thread."""

    def now_ns(self) -> int:
        """Return it [ns]."""
        return time.thread_time_ns()


class Undisturbed(LocalHost):
    """A machine whose other work takes none of that time."""

    def switches(self) -> int:
        """Return 0."""
        return 0

    def busy_cores(self) -> float:
        """Return 0."""
        return 0.0


def steps(desk: Desk, lengths: Sequence[int], sizes: Sequence[int]) -> Iterator[Goal]:
    """Decode steps through pages over the full cache's, of the same rows."""
    run = RunShape(prompt_lengths=tuple(lengths), new_tokens=BLOCK)
    ids = torch.tensor(desk.bench.sources["baseline"].windows(len(lengths), run.prompt_tokens + BLOCK))
    arms = {"baseline": DecodeArm(desk.arm("baseline"), run, ids)}
    for size in sizes:
        arms[f"paged {size}"] = DecodeArm(desk.arm("paged", f"strategy.layout.page_tokens={size}"), run, ids)
    paired = measure_paired(
        arms,
        baseline="baseline",
        steps=BLOCK,
        statistic="median",
        settings=desk.settings,
        clock=ProcessorClock(),
        host=Undisturbed(),
        progress=lambda share: None,
    )
    rows = " ".join(map(str, lengths))
    desk.samples.append(pd.DataFrame(paired.records()).assign(model=MODEL, comparison=rows))
    yield goal(f"baseline / itself, {rows}", NO_GOAL, paired, again("baseline"), "baseline")
    for size in sizes:
        name = f"paged {size}"
        yield goal(f"C15 {name} / baseline, {rows}", _limit(size, AT_MOST), paired, name, "baseline")


def peaks(context: int, sizes: Sequence[int]) -> Iterator[Goal]:
    """What decoding holds at most beyond the weights, over the bytes of the full cache."""
    asked = [f"model={MODEL}", "model.device=cpu", f"workload.prompt_tokens={context}", "workload.new_tokens=32"]
    full = _peak("kvbench.worker:weigh", job_for([*asked, "strategy=baseline"]), "strategy")
    rows = {"baseline": (full, NO_GOAL)}
    for size in sizes:
        job = job_for([*asked, "strategy=paged", f"strategy.layout.page_tokens={size}"])
        rows[f"paged {size}"] = _peak("kvbench.worker:weigh", job, "strategy"), _limit(size, PEAK_AT_MOST)
    for name, (row, limit) in rows.items():
        whole, reached = full["kv_used_bytes"], row["decode_peak_bytes"]
        yield Goal(name=f"C15 {name}'s decode peak / KV, {context}", at_most=limit, reached=reached / whole)
        for column in ("peak_bytes", "kv_allocated_bytes"):
            title = f"{name}'s {column} / baseline's, {context}"
            yield Goal(name=title, at_most=NO_GOAL, reached=row[column] / full[column])


def _limit(size: int, at_most: float) -> float:
    return at_most if size >= 16 else NO_GOAL


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0, help="per comparison")
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 16, 64, 128, 256], help="tokens of a page")
    parser.add_argument("--parts", nargs="+", default=["steps", "ragged", "peaks"])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    desk = Desk(MODEL, arguments.seconds)
    contexts, sizes = arguments.contexts, arguments.sizes
    parts: dict[str, Callable[[], Iterator[Goal]]] = {
        "steps": lambda: (found for context in contexts for found in steps(desk, [context], sizes)),
        "ragged": lambda: steps(desk, RAGGED, sizes),
        "peaks": lambda: peaks(contexts[-1], sizes),
    }
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    rows = []
    for part in arguments.parts:
        for found in parts[part]():
            print(shown(found), flush=True)
            rows.append({"part": part, "model": MODEL, "commit": commit, **vars(found)})
        gc.collect()
    numbers = dict.fromkeys(("at_most", "low", "high"), float)
    frame = pd.DataFrame(rows).astype(numbers).replace(NO_GOAL, float("nan"))
    keep(frame, arguments.out / "ratios.parquet", ["part", "name"])
    if desk.samples:
        keep(pd.concat(desk.samples).assign(commit=commit), arguments.out / "steps.parquet", ["comparison"])


if __name__ == "__main__":
    main()
