"""A sweep of twelve real runs, killed with -9 at ten random moments and started again each time.

    python -m benchmarks.killed_sweep --runs runs/killed --seed 0

Fails unless there are exactly twelve finished runs in the end, all of which can be read, and none of which was touched
after it was there. Prints what was there at every kill. What it printed is in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq

from kvbench.results.load import load

NUM_ROWS, NUM_KILLS = 12, 10
SWEEP = [
    *("-m", "strategy=baseline,h2o,snapkv,kivi4", "seed=0,1,2", "model.device=cpu", "sink.wandb.mode=disabled"),
    *("workload.prompt_tokens=96", "workload.new_tokens=4", "quality=none", "measure.cell_seconds=0.2"),
    *("measure.min_rounds=2", "measure.max_rounds=2", "measure.quiet_seconds=0"),
]


def finished(runs: Path) -> dict[Path, tuple[int, int]]:
    """Return the files of finished runs, which file each is and when it was last written."""
    files = (path for path in runs.glob("*/[!.]*/*") if (path.parent / "run.parquet").is_file())
    return {path: ((stat := path.stat()).st_ino, stat.st_mtime_ns) for path in files}


def main() -> None:
    """Kill, start again, and look."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the results; emptied first")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--most-seconds", type=float, default=60.0, help="from a start to its kill")
    arguments = parser.parse_args()
    runs, dice = arguments.runs, random.Random(arguments.seed)
    shutil.rmtree(runs, ignore_errors=True)
    command = [sys.executable, "-c", "from kvbench.cli import entry; entry()", "run", *SWEEP, f"runs={runs}"]
    before: dict[Path, tuple[int, int]] = {}
    for number in range(NUM_KILLS):
        seconds = dice.uniform(0, arguments.most_seconds)
        sweep = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        sweep.send_signal(signal.SIGKILL)
        assert sweep.wait() == -signal.SIGKILL, "the sweep ended before it was killed; lower --most-seconds"
        there, drafts = finished(runs), len(list(runs.glob("*/.draft-*")))
        assert before.items() <= there.items(), "a finished run was touched"
        before = there
        count = len({path.parent for path in there})
        print(f"kill {number + 1} after {seconds:.1f} s: {count} of {NUM_ROWS} finished, {drafts} drafts left behind")
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert before.items() <= finished(runs).items(), "a finished run was touched"
    for file in runs.rglob("*.parquet"):
        pq.read_table(file)
    rows = load(runs)
    rows = rows[rows["arm"] == "strategy"]
    assert len(rows) == NUM_ROWS == len(rows[["strategy", "seed"]].drop_duplicates()) == rows["run_id"].nunique()
    assert not list(runs.glob("*/.draft-*"))
    print(f"started once more: {len(rows)} finished runs, {rows['status'].value_counts().to_dict()}, none repeated")


if __name__ == "__main__":
    main()
