"""Ways to compact that lose something, or leave something, when somebody is killed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from kvbench.results import compact, load

Break = Callable[[pytest.MonkeyPatch], None]


def removes_first(patch: pytest.MonkeyPatch) -> None:
    """Remove the runs as soon as their tables are written, before the bundle has its name."""
    write, remove = compact._write, compact._remove

    def written(sources: list[Path], draft: Path) -> pa.Table:
        table = write(sources, draft)
        remove(source for source in sources if not source.name.startswith("compact-"))
        return table

    patch.setattr(compact, "_write", written)
    patch.setattr(compact, "_remove", lambda folders: remove(folder for folder in folders if folder.is_dir()))


def removes_in_place(patch: pytest.MonkeyPatch) -> None:
    """Remove folders where they are, file by file: half of a run may stay."""

    def remove(folders: Iterable[Path]) -> None:
        for folder in folders:
            shutil.rmtree(folder)

    patch.setattr(compact, "_remove", remove)


def reads_twice(patch: pytest.MonkeyPatch) -> None:
    """Take a run that lies in two places for two."""

    def runs_in(sources: list[Path]) -> pa.Table:
        tables = [original([source]) for source in sorted(sources)]
        return pa.concat_tables(tables) if tables else original([])

    original: Callable[..., Any] = load.runs_in
    patch.setattr(load, "runs_in", runs_in)


def keeps_what_is_known(patch: pytest.MonkeyPatch) -> None:
    """Leave the folders of runs that a bundle has, which a killed process could not remove."""
    remove = compact._remove

    def removed(folders: Iterable[Path]) -> None:
        if isinstance(folders, list):
            remove(folders)

    patch.setattr(compact, "_remove", removed)


HASTY: list[Break] = [removes_first, removes_in_place, reads_twice, keeps_what_is_known]
