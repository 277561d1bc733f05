"""Mirrors that leave something out, or hold the run up."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from kvbench.results import wandb_mirror
from kvbench.results.sink import Sink, Wandb


def _with(name: str, replacement: Callable[..., object]) -> Callable[[Path], None]:
    def mirror(folder: Path) -> None:
        kept = getattr(wandb_mirror, name)
        setattr(wandb_mirror, name, replacement)
        try:
            wandb_mirror.mirror(folder, project="kvbench", mode="offline", timeout_s=60.0)
        finally:
            setattr(wandb_mirror, name, kept)

    return mirror


_history, _summary = wandb_mirror.history, wandb_mirror.summary

unchanged = _with("history", _history)
MIRRORS = [
    _with("history", lambda steps: _history(steps[steps["index_in_block"] > 0])),
    _with("history", lambda steps: _history(steps.sort_values("wall_ns"))),
    _with("history", lambda steps: _history(steps.assign(event_ms=pd.Series(1.0, index=steps.index)))),
    _with("summary", lambda rows: _summary([row for row in rows if row["arm"] == "strategy"])),
]


def patient(folder: Path) -> str | None:
    """Wait longer than was allowed."""
    said = Sink(wandb=Wandb(mode="online", project="kvbench", timeout_s=1.0)).mirror(folder)
    time.sleep(2.5)
    return said
