"""`kvbench table`, `compare` and `export`: finished runs again."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from kvbench.results.compare import compare as compared
from kvbench.results.export import export as exported
from kvbench.results.load import load
from kvbench.results.table import print_table


def table(path: str) -> None:
    """Print the table of a run, a sweep or a tree."""
    print_table(load(path), Console(), path=Path(path))


def compare(a: str, b: str) -> None:
    """Print how the runs of one folder did against those of another."""
    print(compared(a, b).to_string(index=False))


def export(path: str, file: str, *, steps: bool) -> None:
    """Write runs, or their timed steps, as csv or json."""
    frame = load(path, steps=steps)
    exported(frame, Path(file))
    print(f"{len(frame)} rows in {file}")
