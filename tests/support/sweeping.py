"""Sweeps in processes of their own, which may be killed: everything is real but the numbers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from kvbench import children, runner
from kvbench.cli import main
from kvbench.job import Job, Measured


def sweep(runs: Path, num_rows: int, log: Path, killed_at: int) -> None:
    """Run a sweep, and be killed in the middle of it.

    Args:
        runs: where results go.
        num_rows: of the sweep.
        log: file that gets a line for every row that is measured.
        killed_at: moments until then: before and after each file that is written, and each run that is finished.
            -1 for never.
    """
    moments = iter(range(killed_at)) if killed_at >= 0 else None

    def moment() -> None:
        if moments is not None and next(moments, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    def measured(job: Job, *_: object) -> Measured:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{job.seed}\n")
        moment()
        return Measured(rows={"strategy": {"status": "ok"}})

    write, rename = Path.write_text, Path.rename

    def write_text(self: Path, text: str, encoding: str) -> int:
        moment()
        written = write(self, text, encoding=encoding)
        moment()
        return written

    def renamed(self: Path, target: Path) -> Path:
        moment()
        done = rename(self, target)
        moment()
        return done

    runner.measure, children.start = measured, lambda: None  # type: ignore[assignment]
    Path.write_text, Path.rename = write_text, renamed  # type: ignore[assignment,method-assign]
    main(["run", "-m", f"seed=range({num_rows})", "model.device=cpu", "sink.wandb.mode=disabled", f"runs={runs}"])


def sweep_apart(runs: Path, num_rows: int, log: Path, killed_at: int = -1) -> int | None:
    """Run a sweep in a process of its own; return how it ended."""
    process = children._context().Process(target=sweep, args=(runs, num_rows, log, killed_at))
    process.start()
    process.join()
    exitcode: int | None = process.exitcode
    return exitcode
