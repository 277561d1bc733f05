"""Copies one finished run from its folder to Weights & Biases, in a process of its own that may be ended at any time.

Run as `python -m kvbench.report.wandb_mirror FOLDER PROJECT MODE TIMEOUT_S`.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from kvbench.report.figures import of_group
from kvbench.results.cells import Row, label_of, plain
from kvbench.results.load import load
from kvbench.results.sink import Mode

QUIET = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}


def mirror(folder: Path, *, project: str, mode: Mode, timeout_s: float) -> None:
    """Copy a run: its configuration, its rows as summary and table, its steps as history, its figures and its files.

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
        with TemporaryDirectory() as place:  # wandb copies what lies in a file; of a figure it wants pyplot
            drawn = figures(load(folder), Path(place))
            run.log({f"figures/{file.stem}": wandb.Image(str(file)) for file in drawn})
        run.summary.update(summary(rows))
        kept = wandb.Artifact(f"run-{row['run_id']}", type="kvbench-run", metadata={"sweep": row["sweep"]})
        for file in record(folder):
            kept.add_file(str(file), policy="immutable")  # where it is: a copy would lie in the user's home
        run.log_artifact(kept)
    wandb.teardown()  # offline, the end of a run does not wait for the disk


def record(folder: Path) -> list[Path]:
    """Return the files from which everything shown can be made again; the log, which may go on, is none of them."""
    return sorted(file for file in folder.iterdir() if file.suffix in (".parquet", ".yaml", ".json"))


def figures(runs: pd.DataFrame, place: Path) -> Iterator[Path]:
    """Draw the figures of a run that can be drawn, and yield where they are.

    Args:
        runs: as `kvbench.load` returns them.
        place: folder for the pictures.
    """
    for picture in of_group(runs):
        made = picture.drawn()
        if not isinstance(made, str):
            file = place / f"{picture.name}.png"
            made[0].savefig(file, dpi=80)
            yield file


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
