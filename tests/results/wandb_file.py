"""Reads what wandb writes offline, without wandb's own reader (there is none any more)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE_HEADER = b":W&B\xe1\xbe\x00"
BLOCK_BYTES = 32_768
HEADER_BYTES = 7  # crc u32, length u16, type u8
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def chunks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the kind and the content of each piece of a record (LevelDB's log format)."""
    place = len(FILE_HEADER)
    while place + HEADER_BYTES <= len(data):
        left = BLOCK_BYTES - place % BLOCK_BYTES
        if left < HEADER_BYTES:  # the rest of a block is padding
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        yield kind, data[place + HEADER_BYTES : place + HEADER_BYTES + length]
        place += HEADER_BYTES + length


def records(path: Path) -> Iterator[Any]:
    """Yield the records of a .wandb file."""
    from wandb.proto.wandb_internal_pb2 import Record  # three hundred files

    data = path.read_bytes()
    assert data.startswith(FILE_HEADER), f"{path} is no file of wandb's"
    whole = b""
    for kind, piece in chunks(data):
        whole = piece if kind in (FULL, FIRST) else whole + piece
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(whole)
            yield record


def values(items: Any) -> dict[str, Any]:
    """Return key and value of wandb's items."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Return configuration, summary and history of a .wandb file."""
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    history = []
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            config |= values(record.run.config.update)
        elif kind == "config":
            config |= values(record.config.update)
        elif kind == "summary":
            summary |= values(record.summary.update)
        elif kind == "history":
            history.append(values(record.history.item))
    return config, summary, history


def artifacts(path: Path) -> dict[str, dict[str, str]]:
    """Return, by type of artifact, the files in it and where they lie."""
    found = (record.artifact for record in records(path) if record.WhichOneof("record_type") == "artifact")
    return {one.type: {file.path: file.local_path for file in one.manifest.contents} for one in found}
