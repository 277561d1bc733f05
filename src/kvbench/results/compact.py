"""Many runs in few files: what takes a second each to find on a shared disk is read at once.

The runs of a sweep become one bundle, a folder beside them with the same tables, whose rows name their run, and an
archive of their other files. A bundle is written as a run is: in a draft, which is renamed when all of it is there.
Only then the runs' own folders go, each by a rename. Whoever is killed in between leaves runs that lie in two places,
which are read once, and finished by the next one who compacts.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from kvbench.results.folder import (
    BUNDLE,
    REQUESTS_FILE,
    RUN_FILE,
    SAMPLES_FILE,
    STEPS_FILE,
    bundles,
    compacted,
    draft_name,
    drop_leftovers,
    storing,
)
from kvbench.results.load import part_of, runs_in
from kvbench.results.schema import REQUESTS, SAMPLES, STEPS

OTHER_FILES = "files.zip"  # <run_id>/<file> of all that is no table
_PARTS = {STEPS_FILE: STEPS, REQUESTS_FILE: REQUESTS, SAMPLES_FILE: SAMPLES}


@dataclass(frozen=True, kw_only=True)
class Compacted:
    """What became of the runs of a sweep.

    Args:
        folder: that holds them now.
        num_runs: in it.
        num_new: that were not in a bundle before.
    """

    folder: Path
    num_runs: int
    num_new: int


def compact(root: Path) -> list[Compacted]:
    """Put the runs of every sweep below a folder into one bundle each; sweeps with nothing new stay as they are.

    Args:
        root: of a sweep or a whole tree of runs.

    Raises:
        ValueError: if it is a run, or there is none.
        StorageError: if a bundle cannot be written; nothing is removed then.
    """
    if (root / RUN_FILE).is_file():
        raise ValueError(f"{root} is a run; give the folder of its sweep, or of a whole tree of runs.")
    places = list(_places(root))
    if not places:
        raise ValueError(f"no finished run below {root}: give the folder that runs= named, or one inside it.")
    return [done for place in places if (done := _compact(place)) is not None]


def _places(root: Path) -> Iterator[Path]:
    """Yield the folders that runs lie in."""
    for folder, inside, _ in os.walk(root):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        runs = [name for name in inside if (Path(folder) / name / RUN_FILE).is_file()]
        inside[:] = [name for name in inside if name not in set(runs)]
        if runs:
            yield Path(folder)


def _compact(place: Path) -> Compacted | None:
    with storing(place), _alone(place):
        drop_leftovers(place)
        before, known = bundles(place), compacted(place)
        runs = [file.parent for file in sorted(place.glob(f"[!.]*/{RUN_FILE}")) if file.parent not in before]
        new = [run for run in runs if run.name not in known and _names_itself(run)]
        if not new and len(before) == 1:
            _remove(run for run in runs if run.name in known)  # whoever put them there was killed
            return None
        draft = draft_name(place)
        draft.mkdir()
        try:
            table = _write([*before, *new], draft)
            folder = draft.rename(place / f"{BUNDLE}{secrets.token_hex(4)}")
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        _remove([*before, *new, *(run for run in runs if run.name in known)])
    num_runs = len(table["run_id"].unique())
    return Compacted(folder=folder, num_runs=num_runs, num_new=len(new))


def _names_itself(run: Path) -> bool:
    """Return whether a run lies where it was finished; one that somebody renamed would lose its new name."""
    return bool(pq.read_table(run / RUN_FILE, columns=["run_id"])["run_id"][0].as_py() == run.name)


def _write(sources: list[Path], draft: Path) -> pa.Table:
    """Write the tables and the other files of runs, and return their rows."""
    runs = runs_in(sources)
    pq.write_table(runs.drop_columns(["folder", "source"]), draft / RUN_FILE)
    for name, schema in _PARTS.items():
        part, _ = part_of(runs, name, schema)
        if part.num_rows or name == STEPS_FILE:
            pq.write_table(part, draft / name)
    with zipfile.ZipFile(draft / OTHER_FILES, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in _other_files(sources):
            if name not in archive.NameToInfo:
                archive.writestr(name, content)
    return runs


def _other_files(sources: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    tables = {RUN_FILE, *_PARTS}
    for source in sources:
        if (source / OTHER_FILES).is_file() and source.name.startswith(BUNDLE):
            with zipfile.ZipFile(source / OTHER_FILES) as archive:
                yield from ((name, archive.read(name)) for name in archive.namelist())
            continue
        for folder, _, names in os.walk(source):
            for name in names if Path(folder) != source else sorted(set(names) - tables):
                file = Path(folder) / name
                yield f"{source.name}/{file.relative_to(source).as_posix()}", file.read_bytes()


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder.rename(draft_name(folder.parent)))  # nobody sees half of it


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Wait for whoever else compacts a folder."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
