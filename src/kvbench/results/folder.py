"""One folder per finished run, and nothing that looks like one before.

A run is written in a hidden draft beside its place and renamed when all of it is there. A rename either happens or
does not: a killed run leaves a draft, which nobody reads, and of two processes that finish the same run one wins.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from kvbench.results.records import Record, request_table, run_table, sample_table, step_table

RUN_FILE = "run.parquet"
STEPS_FILE = "steps.parquet"
REQUESTS_FILE = "requests.parquet"
SAMPLES_FILE = "samples.parquet"
LOG_FILE = "run.log"
CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "env.json"
TEXTS_FILE = "texts.json"
IDENTITY_FILE = "identity.json"

BUNDLE = "compact-"  # what names of folders begin with that hold many runs
DAY_S = 86_400
_DRAFT = re.compile(r"\.draft-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]+")
_TAKEN = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}


class StorageError(OSError):
    """Results cannot be written where they should go."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """Where a run lies.

    Args:
        folder: of the run.
        run_id: its name; ends in -2, -3, ... for a repeat.
        is_new: False where another process had finished the same run first; its results stand.
    """

    folder: Path
    run_id: str
    is_new: bool


def finished(runs: Path, *, sweep: str, run_id: str) -> Path | None:
    """Return the folder of a finished run, or None; what was compacted keeps the name of the folder it had.

    Args:
        runs: where results go.
        sweep: folder of the run's sweep.
        run_id: name of the run.
    """
    folder = runs / sweep / run_id
    return folder if (folder / RUN_FILE).is_file() or run_id in compacted(folder.parent) else None


def bundles(place: Path) -> list[Path]:
    """Return the folders that hold many runs of a sweep each; whoever looks for a run looks for its own folder first.

    Args:
        place: folder of the sweep.
    """
    return sorted(file.parent for file in place.glob(f"{BUNDLE}*/{RUN_FILE}"))


def compacted(place: Path) -> frozenset[str]:
    """Return the names of the runs that lie in the bundles of a sweep.

    Args:
        place: folder of the sweep.
    """
    try:
        files = [folder / RUN_FILE for folder in bundles(place)]
        return frozenset[str]().union(*(_run_ids(file, file.stat().st_mtime_ns) for file in files))
    except FileNotFoundError:  # just now put into another one, which is there before the first goes
        return compacted(place)


@lru_cache(maxsize=64)
def _run_ids(file: Path, written_ns: int) -> frozenset[str]:
    return frozenset(pq.read_table(file, columns=["run_id"])["run_id"].to_pylist())


@contextmanager
def open_draft(runs: Path, *, sweep: str, run_id: str, force: bool) -> Iterator[Draft]:
    """Give a place to write a run to, which is gone at the end unless the run was finished.

    Args:
        runs: where results go.
        sweep: folder of the run's sweep.
        run_id: name of the run.
        force: whether to put a repeat beside a finished run.
    """
    draft = Draft(runs, sweep=sweep, run_id=run_id, force=force)
    try:
        yield draft
    finally:
        draft.drop()


class Draft:
    """A run that is being written.

    Args:
        runs: where results go.
        sweep: folder of the run's sweep.
        run_id: name of the run.
        force: whether to put a repeat beside a finished run.
    """

    def __init__(self, runs: Path, *, sweep: str, run_id: str, force: bool) -> None:
        """Make the folder, after clearing away what killed runs left."""
        self.runs, self.sweep, self.run_id, self.force = runs, sweep, run_id, force
        self.place = runs / sweep
        self.folder = draft_name(self.place)
        self.is_renamed = False
        with storing(runs):
            self.place.mkdir(parents=True, exist_ok=True)
            drop_leftovers(self.place)
            self.folder.mkdir()

    def log(self, line: str) -> None:
        """Append a line to the run's log, also after it was finished."""
        with storing(self.runs):
            append_log(self.folder, line)

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the run.

        Args:
            name: of the file.
            text: in it.
        """
        with storing(self.runs):
            (self.folder / name).write_text(text, encoding="utf-8")

    def write_json(self, name: str, value: object) -> None:
        """Write a file of the run.

        Args:
            name: of the file.
            value: in it.
        """
        self.write_text(name, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    @property
    def journal(self) -> Path:
        """File that outlives a killed run, for who runs the same again."""
        return self.place / f".answers-{self.run_id}.jsonl"

    def finish(
        self,
        rows: Iterable[Record],
        steps: Iterable[Record],
        requests: Sequence[Record] = (),
        samples: Sequence[Record] = (),
    ) -> Finished:
        """Write the tables and give the run its name, unless somebody else was first.

        Args:
            rows: one per arm.
            steps: one per timed step.
            requests: one per request and time it was served.
            samples: one per turn of what was asked; once they lie in the run, its journal goes.
        """
        rows, steps = list(rows), list(steps)
        for run_id in self._names():
            if finished(self.runs, sweep=self.sweep, run_id=run_id):
                continue
            run, timed = run_table(rows, run_id=run_id, sweep=self.sweep), step_table(steps, run_id=run_id)
            with storing(self.runs):
                _write(run, self.folder / RUN_FILE)
                _write(timed, self.folder / STEPS_FILE)
                if requests:
                    _write(request_table(requests, run_id=run_id), self.folder / REQUESTS_FILE)
                if samples:
                    _write(sample_table(samples, run_id=run_id), self.folder / SAMPLES_FILE)
                if self._rename(self.place / run_id):
                    if samples:
                        self.journal.unlink(missing_ok=True)
                    return Finished(folder=self.folder, run_id=run_id, is_new=True)
        folder = finished(self.runs, sweep=self.sweep, run_id=self.run_id)
        if folder is None:
            name = self.place / self.run_id
            raise StorageError(f"{name} is in the way and is no finished run: move it, or set runs=<folder>.")
        return Finished(folder=folder, run_id=self.run_id, is_new=False)

    def drop(self) -> None:
        """Remove the draft, unless it has become a run."""
        if not self.is_renamed:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _names(self) -> Iterable[str]:
        repeats = (f"{self.run_id}-{number}" for number in itertools.count(2)) if self.force else ()
        return itertools.chain([self.run_id], repeats)

    def _rename(self, target: Path) -> bool:
        try:
            self.folder.rename(target)
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            raise
        self.folder, self.is_renamed = target, True
        return True


def under_way(place: Path) -> Iterator[tuple[Path, str]]:
    """Yield the drafts of a sweep that somebody still writes, and on which machine.

    Args:
        place: folder of the sweep.
    """
    for folder in place.glob(".draft-*"):
        named = _DRAFT.fullmatch(folder.name)
        if named is not None and not _is_left_over(folder):
            yield folder, named["host"]


def append_log(folder: Path, line: str) -> None:
    """Append a line to a run's log.

    Args:
        folder: of the run.
        line: without its end.
    """
    with (folder / LOG_FILE).open("a", encoding="utf-8") as log:
        log.write(line.rstrip("\n") + "\n")


def _write(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, use_dictionary=False, write_statistics=False)  # a third faster for a table this wide


@contextmanager
def storing(runs: Path) -> Iterator[None]:
    """Say what to do where results cannot be written.

    Args:
        runs: where they go.
    """
    try:
        yield
    except OSError as error:
        reason = " ".join((error.strerror or str(error)).split())
        raise StorageError(
            f"cannot write results below {runs}: {reason}. Make room or give access there, or choose another place "
            f"with runs=<folder>; finished runs are untouched."
        ) from error


def draft_name(place: Path) -> Path:
    """Return a hidden folder that is this process' own, and anybody's to remove once the process is gone.

    Args:
        place: in which it is to be.
    """
    return place / f".draft-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def drop_leftovers(place: Path) -> None:
    """Remove what killed processes left.

    Args:
        place: in which they wrote.
    """
    for folder in place.glob(".draft-*"):
        if _is_left_over(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_left_over(folder: Path) -> bool:
    named = _DRAFT.fullmatch(folder.name)
    if named is None:
        return False
    if named["host"] == socket.gethostname() and not _is_alive(int(named["pid"])):
        return True
    with contextlib.suppress(FileNotFoundError):  # another process may be faster
        last_s = max(path.stat().st_mtime for path in [folder, *folder.iterdir()])
        return time.time() - last_s > DAY_S
    return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
