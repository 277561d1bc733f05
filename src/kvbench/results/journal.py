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

    A line counts once its end has been written. Of two processes that write the same journal the second waits, and
    finds what the first one wrote.

    Args:
        path: of the file; made where there is none.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._file.seek(0)
        whole, _, _ = self._file.read().rpartition(b"\n")
        self._file.truncate(len(whole) + bool(whole))
        self.rows: list[Row] = [json.loads(line) for line in whole.splitlines()]

    def add(self, rows: Sequence[Row]) -> None:
        """Append records; they are on the disk when this returns."""
        self._file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows += rows

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Let others write."""
        self._file.close()
