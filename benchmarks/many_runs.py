"""Ten thousand runs and two million timed steps: what loading them takes, before `kvbench compact` and after.

    python -m benchmarks.many_runs --runs runs/many

Runs are written by the project's own writer, with made-up numbers and the files that a run has. Each load is a process
of its own, whose processor time and largest resident memory are printed, imports included; what it printed is in
benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from kvbench.results.compact import compact
from kvbench.results.folder import open_draft
from tests.results.factory import baseline, row, steps

LOAD = """
import resource, sys, time
from kvbench.results.load import load
began = time.perf_counter()
frame = load(sys.argv[1], steps=sys.argv[2] == "steps")
wall = time.perf_counter() - began
used = resource.getrusage(resource.RUSAGE_SELF)
gib = used.ru_maxrss / 2**20
print(f"{len(frame):,} rows, {wall:.1f} s, {used.ru_utime + used.ru_stime:.1f} s of processors, {gib:.2f} GiB at most")
"""


def write(runs: Path, num_runs: int, steps_per_run: int) -> None:
    """Write runs that a sweep could have left.

    Args:
        runs: where they go.
        num_runs: how many.
        steps_per_run: timed steps of each, half of them the baseline's.
    """
    config = json.dumps({f"key_{number}": "a value of usual length" for number in range(80)})
    for number in range(num_runs):
        made = {"config_json": config, "config_hash": f"{number:012x}", "seed": number}
        made["created_at"] = f"2026-01-01T{number // 3600:02}:{number // 60 % 60:02}:{number % 60:02}+00:00"
        times = [[3.0 + 0.001 * number] * 10] * (steps_per_run // 20)
        with open_draft(runs, sweep="many", run_id=f"{number:012x}", force=False) as draft:
            draft.write_text("config.yaml", config)
            draft.write_json("env.json", {"python": "3.11"})
            draft.write_json("texts.json", {"strategy": ["a text"]})
            draft.finish([row("h2o", **made), baseline(**made)], [*steps(times), *steps(times, arm="baseline")])


def report(runs: Path, when: str) -> None:
    """Print what loading takes, in processes of their own.

    Args:
        runs: a tree of runs.
        when: what was done with it.
    """
    for kind in ("runs", "steps"):
        done = subprocess.run([sys.executable, "-c", LOAD, str(runs), kind], check=True, capture_output=True, text=True)
        print(f"{when}: load {kind}: {done.stdout.strip()}", flush=True)


def main() -> None:
    """Write, load, compact, load."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs; filled where there is none")
    parser.add_argument("--num-runs", type=int, default=10_000)
    parser.add_argument("--steps-per-run", type=int, default=200)
    arguments = parser.parse_args()
    if not arguments.runs.is_dir():
        write(arguments.runs, arguments.num_runs, arguments.steps_per_run)
    report(arguments.runs, "as written")
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    (done,) = compact(arguments.runs)
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    size = sum(file.stat().st_size for file in done.folder.iterdir())
    files = ", ".join(sorted(file.name for file in done.folder.iterdir()))
    print(f"compact: {done.num_runs:,} runs, {time.perf_counter() - began:.1f} s, {cpu_s:.1f} s of processors")
    print(f"compact: {size / 2**20:.0f} MiB in {files}; {used.ru_maxrss / 2**20:.2f} GiB at most")
    report(arguments.runs, "compacted")


if __name__ == "__main__":
    main()
