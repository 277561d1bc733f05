"""Copies one finished run from its folder to Weights & Biases, in a process of its own that may be ended at any time.

Run as `python -m kvbench.results.wandb_mirror FOLDER PROJECT MODE TIMEOUT_S`.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from kvbench.results.cells import Row, label_of, plain
from kvbench.results.load import load
from kvbench.results.sink import Mode

QUIET = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}


def mirror(folder: Path, *, project: str, mode: Mode, timeout_s: float) -> None:
    """Copy a run: its configuration, its rows as summary and table, and its steps as history.

    Args:
        folder: of the run; the files of an offline mirror go there.
        project: in which the run appears.
        mode: "offline" or "online".
        timeout_s: for the connection.
    """
    os.environ.update(QUIET)
    import wandb  # here, because loading is not tied to it

    rows = plain(load(folder))
    row = next(row for row in rows if row["arm"] == "strategy")
    with wandb.init(
        project=project,
        mode=mode,
        dir=str(folder),
        id=re.sub(r"\W", "-", f"{row['sweep']}-{row['run_id']}"),
        name=f"{label_of(row)} | {row['model']} | {row['workload']}",
        group=row["sweep"],
        config=json.loads(row["config_json"]),
        settings=wandb.Settings(init_timeout=timeout_s, x_disable_stats=True, x_disable_meta=True, disable_git=True),
    ) as run:
        for point in history(load(folder, steps=True)):
            run.log(point)
        run.log({"rows": wandb.Table(columns=list(row), data=[list(one.values()) for one in rows])})
        run.summary.update(summary(rows))
    wandb.teardown()  # offline, the end of a run does not wait for the disk


def summary(rows: list[Row]) -> dict[str, Any]:
    """Return the strategy's columns under their names, and the baseline's under theirs behind "baseline/"."""
    return {
        name if row["arm"] == "strategy" else f"{row['arm']}/{name}": value
        for row in rows
        for name, value in row.items()
        if value is not None and name not in ("arm", "config_json")
    }


def history(steps: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Return one point per timed step, the time under the phase and the arm."""
    wall_ms = steps["wall_ns"] / 1e6
    ms = steps["event_ms"].where(steps["event_ms"].notna(), wall_ms)
    columns = ["phase", "arm", "round", "block", "index_in_block", "position", "is_clean"]
    for phase, arm, *rest, value in steps[columns].assign(ms=ms.astype(float)).itertuples(index=False):
        numbers = dict(zip(columns[2:], rest, strict=True))
        yield {f"{phase}/{arm}_ms": value, **{f"step/{name}": number for name, number in numbers.items()}}


def main(folder: str, project: str, mode: Mode, timeout_s: str) -> None:
    """Copy the run that the command line names."""
    mirror(Path(folder), project=project, mode=mode, timeout_s=float(timeout_s))


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
