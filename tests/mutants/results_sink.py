"""Mirrors that leave something out, or hold the run up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
from PIL import Image

from kvbench.report import wandb_mirror
from kvbench.results.sink import Sink, Wandb


def dots(runs: pd.DataFrame, place: Path) -> Iterator[Path]:
    """Draw a dot for each figure there would be: what else a mirror leaves out does not depend on them."""
    for name in ("nll_delta_nats_by_bytes", "ratio"):
        file = place / f"{name}.png"
        Image.new("RGB", (1, 1)).save(file)
        yield file


def _with(name: str, replacement: Callable[..., object]) -> Callable[[Path], None]:
    replaced = {"figures": dots, name: replacement}

    def mirror(folder: Path) -> None:
        kept = {name: getattr(wandb_mirror, name) for name in replaced}
        for name, other in replaced.items():
            setattr(wandb_mirror, name, other)
        try:
            wandb_mirror.mirror(folder, project="kvbench", mode="offline", timeout_s=60.0)
        finally:
            for name, own in kept.items():
                setattr(wandb_mirror, name, own)

    return mirror


_history, _summary = wandb_mirror.history, wandb_mirror.summary

unchanged = _with("history", _history)
MIRRORS = [
    _with("history", lambda steps: _history(steps[steps["index_in_block"] > 0])),
    _with("history", lambda steps: _history(steps.sort_values("wall_ns"))),
    _with("history", lambda steps: _history(steps.assign(event_ms=pd.Series(1.0, index=steps.index)))),
    _with("summary", lambda rows: _summary([row for row in rows if row["arm"] == "strategy"])),
    _with("record", lambda folder: [folder / "run.parquet"]),
    _with("figures", lambda runs, place: iter(())),
]


def patient(folder: Path) -> str | None:
    """Wait longer than was allowed."""
    said = Sink(wandb=Wandb(mode="online", project="kvbench", timeout_s=1.0)).mirror(folder)
    time.sleep(2.5)
    return said
