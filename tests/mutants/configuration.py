"""Broken configuration: trees, checks and sweeps that the tests must refuse."""

from __future__ import annotations

import hashlib
import importlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.config_source import ConfigResult

from kvbench.configuration.plugins import places, plugin_hash
from kvbench.configuration.reading import ReadOnce
from kvbench.measure.environment import source_hash


class SharesWhatItRead(ReadOnce):
    """Hands the same nodes to every composition."""

    files: ClassVar[dict[str, ConfigResult | None]] = {}

    def load_config(self, config_path: str) -> ConfigResult | None:
        if config_path not in SharesWhatItRead.files:
            SharesWhatItRead.files[config_path] = ConfigRepository.load_config(self, config_path)
        return SharesWhatItRead.files[config_path]


class KeepsWhatItRead(ReadOnce):
    """Goes on with the files of the folders before."""

    files: ClassVar[dict[str, ConfigResult | None]] = {}

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        ConfigRepository.initialize_sources(self, config_search_path)
        self._read = KeepsWhatItRead.files


BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def locate_anything(target: object, key: str, prefixes: Sequence[str]) -> type:
    """Import whatever a configuration names."""
    module, _, name = str(target).rpartition(".")
    found: type = getattr(importlib.import_module(module), name)
    return found


def bare_hash(overrides: Sequence[str]) -> str:
    """Name a sweep by hexadecimal digits alone, some of which are numbers."""
    return hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:8]


def self_last(conf: Path, copy: Path) -> Path:
    """Copy a tree and let config.yaml's own values win over experiments."""
    shutil.copytree(conf, copy)
    text = (copy / "config.yaml").read_text(encoding="utf-8")
    first = next(line for line in text.splitlines() if line.strip().startswith("- _self_"))
    moved = text.replace(first + "\n", "").replace("- strategy: baseline", "- strategy: baseline\n  - _self_")
    (copy / "config.yaml").write_text(moved, encoding="utf-8")
    return copy


def with_line(file: str, line: str, conf: Path, copy: Path) -> Path:
    """Copy a tree and add a line to one of its files."""
    shutil.copytree(conf, copy)
    (copy / file).write_text((copy / file).read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    return copy


def without_key(file: str, key: str, conf: Path, copy: Path) -> Path:
    """Copy a tree and leave a default to the code."""
    shutil.copytree(conf, copy)
    lines = (copy / file).read_text(encoding="utf-8").splitlines()
    (copy / file).write_text("\n".join(line for line in lines if not line.startswith(f"{key}:")), encoding="utf-8")
    return copy


def hash_of_all_allowed(plain: Mapping[str, Any]) -> str:
    """Count packages that are allowed, used or not."""
    return " ".join(source_hash(place) for one in plain["plugins"] for place in places(one))


def hash_of_names(plain: Mapping[str, Any]) -> str:
    """Count what a package is called, not what it says."""
    return "" if plugin_hash(plain) == "" else str(plain["strategy"])


def hash_of_the_first_file(plain: Mapping[str, Any]) -> str:
    """Count of a package its first file alone."""
    used = [one for one in plain["plugins"] if f"{one}." in str(plain["strategy"])]
    files = [place if place.is_file() else place / "__init__.py" for one in used for place in places(one)]
    return " ".join(f"{file} {file.read_text()}" for file in files)


PLUGIN_HASHES = [hash_of_all_allowed, hash_of_names, hash_of_the_first_file]
