"""JSON lines, a row at a time, with messages that name the line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def json_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where a row stands, for messages, and the row.

    Raises:
        ValueError: if there is no such file, or a line is no object.
    """
    if not Path(path).is_file():
        raise ValueError(f"workload.path={path} is no file.")
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        place = f"workload.path={path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place} is not JSON: {error.msg}.") from error
        if not isinstance(row, dict):
            raise ValueError(f"{place} must be an object; got {line[:40]}.")
        yield place, row
