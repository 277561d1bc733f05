"""Where kvbench keeps what was computed once; imports nothing of ours."""

from __future__ import annotations

import os
from pathlib import Path

CACHE = "KVBENCH_CACHE"  # environment variable: folder of what was computed once


def cache_folder() -> Path:
    """Return where it is kept: $KVBENCH_CACHE, or kvbench in the user's cache folder."""
    chosen = os.environ.get(CACHE)
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvbench"


def engine_folder(name: str) -> Path:
    """Return where the Python environment of an engine is that cannot share kvbench's."""
    return cache_folder() / "engines" / name


def hardware_record(device: str) -> Path:
    """Return where the numbers of a kind of device are kept, "cpu" or "cuda"."""
    return cache_folder() / f"hardware_{device}.json"
