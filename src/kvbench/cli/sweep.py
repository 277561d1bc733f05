"""`kvbench sweep status`: which rows of a sweep are done, which are under way and which are missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kvbench.results.sweeps import MISSING, REFUSED, RUNNING, Standing, Sweep, standings, sweeps_below, time_left


def main(path: str, *, action: str) -> None:
    """Print how far the sweeps of a tree are.

    Args:
        path: of a sweep or a tree.
        action: "status".
    """
    assert action == "status"
    found = list(sweeps_below(Path(path)))
    if not found:
        raise ValueError(f"no sweep below {path}: start one with -m or +experiment=, or give the folder of its runs.")
    for folder, sweep in found:
        for line in lines(folder, sweep, standings(folder, sweep)):
            print(line)


def lines(folder: Path, sweep: Sweep, rows: Sequence[Standing]) -> list[str]:
    """Return a heading, and a line for each row.

    Args:
        folder: of the sweep's runs.
        sweep: what was asked for.
        rows: what became of it.
    """
    counted = Counter(row.status for row in rows)
    parts = [f"{sum(row.is_finished for row in rows)} of {len(rows)} rows are finished"]
    parts += [f"{counted[status]} {status}" for status in (RUNNING, MISSING, REFUSED) if counted[status]]
    left = time_left(sweep, rows, datetime.now(UTC))
    if left is not None:
        parts.append(f"about {timedelta(seconds=round(left.total_seconds()))} left")
    width = max(len(row.status) for row in rows)
    return [f"{folder}: {', '.join(parts)}", *(_line(row, width) for row in rows)]


def _line(row: Standing, width: int) -> str:
    parts = (row.status.ljust(width), row.run_id.ljust(12), row.label)
    return "  ".join(parts) + (f": {row.reason}" if row.reason else "")
