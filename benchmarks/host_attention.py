"""A decode step of which the host attends to what it keeps, over one that fetches that.

    python -m benchmarks.host_attention --out benchmarks/results/host_attention

Model `llama8` with random weights on one CPU thread, half of the cache or all of it on the host; ratios of times are of
blocks timed alternately in one process, with a 95% interval over rounds. Beside them the full cache on the device, and
the bytes that a step moves. On a CPU host and device are two pools of one memory: what is saved is a copy, not a link's
time. Writes one parquet of ratios and one of timed steps, and prints the former.
"""

from __future__ import annotations

import argparse
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.goals import BLOCK, Desk
from benchmarks.tables import keep
from kvbench.engines.arm import DecodeArm
from kvbench.measure.statistics import ratio_interval

MODEL = "llama8"
SHARES = (0.5, 1.0)


def moved(arm: DecodeArm) -> tuple[float, float]:
    """Return the bytes that a step brings up and takes down."""
    arm.restore()
    before = arm.cache.traffic()
    for _ in range(BLOCK):
        arm.step()
    after = arm.cache.traffic()
    arm.restore()
    return (after.up - before.up) / BLOCK, (after.down - before.down) / BLOCK


def compared(desk: Desk, context: int, share: float) -> Iterator[dict[str, object]]:
    """Yield a row for each way to attend, with its time over that of fetching ahead of need."""
    half = f"strategy.placement.host={share}"
    arms: dict[str, Any] = {
        "fetched ahead": desk.decode("flexgen", context, half),
        "fetched when needed": desk.decode("flexgen", context, half, "strategy.placement.prefetch=0"),
        "attended to by the host": desk.decode("flexgen", context, half, "strategy.placement.attend=host"),
        "all on the device": desk.decode("baseline", context),
    }
    bytes_moved = {name: moved(arm) for name, arm in arms.items()}
    paired = desk.compare(f"{share} of {context} on the host", arms)
    for name, arm in arms.items():
        found = ratio_interval(paired.samples, name, "fetched ahead", "median")
        row: dict[str, object] = {"share": share, "context": context, "way": name}
        row |= {"up_bytes": bytes_moved[name][0], "down_bytes": bytes_moved[name][1]}
        row |= {"device_bytes": arm.cache.allocated_bytes(), "host_bytes": arm.cache.bytes_on("host")}
        ends = (math.nan,) * 3 if found is None else (found.value, found.low, found.high)  # None: no round was clean
        yield row | dict(zip(("ratio", "low", "high"), ends, strict=True))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=20.0, help="per comparison")
    parser.add_argument("--context", type=int, default=4096)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    desk = Desk(MODEL, arguments.seconds)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    rows = [row for share in SHARES for row in compared(desk, arguments.context, share)]
    table = pd.DataFrame(rows).assign(model=MODEL, commit=commit)
    print(table.drop(columns=["model", "commit"]).to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    keep(table, arguments.out / "ratios.parquet", ["share", "context", "way"])
    keep(pd.concat(desk.samples).assign(commit=commit), arguments.out / "steps.parquet", ["comparison"])


if __name__ == "__main__":
    main()
