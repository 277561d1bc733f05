"""Packages beside kvbench that a configuration's objects may come from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kvbench.configuration.building import TARGET
from kvbench.measure.environment import source_hash


def places(package: str) -> list[Path]:
    """Return where a package's source is, a folder or a file; nothing where there is no such package."""
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    folders = spec.submodule_search_locations
    found = [spec.origin or ""] if folders is None else folders
    return [path for path in map(Path, found) if path.exists()]


def plugin_hash(plain: Mapping[str, Any]) -> str:
    """Return a hash of the packages that a configuration's objects come from, "" where all are kvbench's.

    Args:
        plain: the configuration in plain containers.
    """
    targets = list(_targets(plain))
    used = [package for package in plain["plugins"] if any(target.startswith(f"{package}.") for target in targets)]
    hashes = [source_hash(place) for package in sorted(used) for place in places(package)]
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest() if hashes else ""


def _targets(node: object) -> Iterator[str]:
    if isinstance(node, Mapping):
        yield from (str(value) for name, value in node.items() if name == TARGET)
    if isinstance(node, Mapping | Sequence) and not isinstance(node, str):
        for value in node.values() if isinstance(node, Mapping) else node:
            yield from _targets(value)
