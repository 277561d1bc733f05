"""JSON lines, a row at a time, with messages that name the line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def lines_of(name: str, text: bytes) -> Iterator[tuple[str, str]]:
    """Yield where each line stands that is not empty, for messages, and the line.

    Args:
        name: of the file, as `workload.path` says it.
        text: in it.

    Raises:
        ValueError: if it is not UTF-8.
    """
    try:
        lines = text.decode().split("\n")  # not at whatever else ends a line: texts hold it
    except UnicodeDecodeError as error:
        raise ValueError(f"workload.path={name} is not UTF-8 text.") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"workload.path={name}, line {number}", line


def json_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where a row stands, for messages, and the row.

    Raises:
        ValueError: if there is no such file, it is not UTF-8, or a line is no object.
    """
    if not Path(path).is_file():
        raise ValueError(f"workload.path={path} is no file.")
    for place, line in lines_of(path, Path(path).read_bytes()):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place} is not JSON: {error.msg}.") from error
        if not isinstance(row, dict):
            raise ValueError(f"{place} must be an object; got {line[:40]}.")
        yield place, row
