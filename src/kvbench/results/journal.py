"""Records as they come, in a file that outlives the process that writes it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

Row = dict[str, Any]


class Journal:
    """What a run that takes long has found so far: killed at any time, it goes on from there.

    A line is a sample, all of its records, and counts once its end has been written. Of two processes that write the
    same journal the second waits, and finds what the first one wrote.

    Args:
        path: of the file; made where there is none.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._file.seek(0)
        whole, _, _ = self._file.read().rpartition(b"\n")
        self._file.truncate(len(whole) + bool(whole))
        self.rows: list[Row] = [row for line in whole.splitlines() for row in json.loads(line)]

    def of(self, arm: str) -> list[Row]:
        """Return the records of one arm."""
        return [row for row in self.rows if row["arm"] == arm]

    def add(self, samples: Sequence[Sequence[Row]]) -> None:
        """Append the records of samples; they are on the disk when this returns."""
        self._file.write(b"".join(json.dumps(rows).encode() + b"\n" for rows in samples))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows += [row for rows in samples for row in rows]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Let others write."""
        self._file.close()
