"""What a sweep is to measure, in a file beside its runs, and how far it is.

The file only says what was asked for. What became of a row is read from the runs themselves: it is true at any moment,
whoever measured them and whoever was killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from kvbench.results.folder import IDENTITY_FILE, under_way
from kvbench.results.load import rows_below

MISSING, RUNNING, REFUSED = "missing", "running", "refused"  # what a row is that has no status yet


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One row of a sweep.

    Args:
        label: what distinguishes it from the others.
        strategy: its strategy's name.
        config_hash: of its configuration; "" where there is none.
        refused: why it cannot be run; "" where it can.
    """

    label: str
    strategy: str = ""
    config_hash: str = ""
    refused: str = ""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What was asked for.

    Args:
        started_at: when it was last started, UTC, ISO 8601.
        source_hash: of the kvbench that was to measure it.
        rows: in the order in which they are measured.
    """

    started_at: str
    source_hash: str
    rows: Sequence[Planned]

    def leave(self, folder: Path) -> None:
        """Write the sweep beside its runs, in the place of an earlier start of the same; other sweeps there stay.

        Args:
            folder: of the runs.
        """
        name = hashlib.sha256("\n".join(row.label for row in self.rows).encode()).hexdigest()[:8]
        draft = folder / f".sweep-{name}-{secrets.token_hex(4)}"
        draft.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        draft.replace(folder / f"sweep-{name}.json")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What became of a row.

    Args:
        label: what distinguishes it from the others.
        status: of its run, or missing, running or refused.
        run_id: of its run; "" where there is none.
        reason: why the status is what it is; where a run is running, on which machine and since when.
        created_at: when its run began, UTC, ISO 8601.
    """

    label: str
    status: str
    run_id: str = ""
    reason: str = ""
    created_at: str = ""

    @property
    def is_finished(self) -> bool:
        """Whether it has a run."""
        return self.run_id != ""


def sweeps_below(root: Path) -> Iterator[tuple[Path, Sweep]]:
    """Yield the sweeps of a tree and the folders of their runs.

    Args:
        root: of a sweep or a whole tree of runs.
    """
    for folder, inside, files in os.walk(root):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        for name in sorted(files):
            if name.startswith("sweep-") and name.endswith(".json"):
                said = json.loads((Path(folder) / name).read_text(encoding="utf-8"))
                yield Path(folder), Sweep(**{**said, "rows": [Planned(**row) for row in said["rows"]]})


def standings(folder: Path, sweep: Sweep) -> list[Standing]:
    """Return what became of the rows of a sweep, in their order.

    Args:
        folder: of its runs.
        sweep: what was asked for.
    """
    there, writing = _there(folder, sweep.source_hash), _writing(folder)
    return [_standing(row, there, writing) for row in sweep.rows]


def time_left(sweep: Sweep, rows: Sequence[Standing], now: datetime) -> timedelta | None:
    """Return about how long a sweep goes on, or None where nobody knows.

    Args:
        sweep: what was asked for.
        rows: what became of it.
        now: with its time zone.
    """
    new = [row for row in rows if row.is_finished and row.created_at >= sweep.started_at]
    left = sum(row.status in (MISSING, RUNNING) for row in rows)
    if not new or not any(row.status == RUNNING for row in rows):
        return None
    return (now - datetime.fromisoformat(sweep.started_at)) / len(new) * left


_Key = tuple[str, str]


def _standing(row: Planned, there: Mapping[_Key, Standing], writing: Mapping[_Key, str]) -> Standing:
    key = (row.strategy, row.config_hash)
    if row.refused:
        return Standing(label=row.label, status=REFUSED, reason=row.refused)
    if key in there:
        return Standing(**{**asdict(there[key]), "label": row.label})
    if key in writing:
        return Standing(label=row.label, status=RUNNING, reason=writing[key])
    return Standing(label=row.label, status=MISSING)


def _there(folder: Path, source_hash: str) -> dict[_Key, Standing]:
    """Return the finished runs of a source, the newest of those that measured the same."""
    runs: pa.Table = rows_below(folder)
    runs = runs.filter(pc.and_(pc.equal(runs["arm"], "strategy"), pc.equal(runs["source_hash"], source_hash)))
    columns = ("strategy", "config_hash", "status", "run_id", "reason", "created_at")
    return {
        (strategy, config_hash): Standing(
            label="", status=status, run_id=run_id, reason=reason if status != "ok" else "", created_at=created_at
        )
        for strategy, config_hash, status, run_id, reason, created_at in zip(
            *(runs[name].to_pylist() for name in columns), strict=True
        )
    }


def _writing(folder: Path) -> dict[_Key, str]:
    """Return which machine measures what, and since when."""
    found = {}
    for draft, host in under_way(folder):
        try:
            said = json.loads((draft / IDENTITY_FILE).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):  # just begun, or finished by now
            continue
        found[said["strategy"], said["config_hash"]] = f"on {host} since {said['created_at']}"
    return found


def now() -> str:
    """Return the time as rows and sweeps write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")
