"""Drafts that are careless with what is there."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from kvbench.results import folder
from kvbench.results.folder import Draft, Finished
from kvbench.results.records import Record


class WrittenInPlace(Draft):
    """Writes where the run is to be, without a draft."""

    def __init__(self, runs: Path, *, sweep: str, run_id: str, force: bool) -> None:
        super().__init__(runs, sweep=sweep, run_id=run_id, force=force)
        self.folder = self.place / run_id
        self.folder.mkdir(exist_ok=True)

    def _rename(self, target: Path) -> bool:
        self.is_renamed = True
        return True


class Overwriting(Draft):
    """Puts itself in the place of a run that is there."""

    def _rename(self, target: Path) -> bool:
        shutil.rmtree(target, ignore_errors=True)
        return super()._rename(target)


class Merging(Draft):
    """Copies itself over a run that is there."""

    def _rename(self, target: Path) -> bool:
        shutil.copytree(self.folder, target, dirs_exist_ok=True)
        return True


class NumberedAtTheStart(Draft):
    """Looks for a free number when it begins, and trusts in it at the end."""

    def __init__(self, runs: Path, *, sweep: str, run_id: str, force: bool) -> None:
        super().__init__(runs, sweep=sweep, run_id=run_id, force=force)
        names = super()._names()
        self.chosen = next(name for name in names if not folder.finished(runs, sweep=sweep, run_id=name))

    def _names(self) -> Iterable[str]:
        return [self.chosen]


class NamedAfterTheFirst(Draft):
    """Gives its folder a number but not its rows."""

    def finish(
        self,
        rows: Iterable[Record],
        steps: Iterable[Record],
        requests: Sequence[Record] = (),
        samples: Sequence[Record] = (),
    ) -> Finished:
        """Write rows that carry the first run's name."""
        done = super().finish(rows, steps, requests, samples)
        for name in (folder.RUN_FILE, folder.STEPS_FILE):
            first = self.place / self.run_id / name
            shutil.copy(first, done.folder / name) if done.run_id != self.run_id else None
        return done


class Tidy(Draft):
    """Clears away every draft, also those that are being written."""

    def __init__(self, runs: Path, *, sweep: str, run_id: str, force: bool) -> None:
        for path in (runs / sweep).glob(".draft-*"):
            shutil.rmtree(path)
        super().__init__(runs, sweep=sweep, run_id=run_id, force=force)


class Untidy(Draft):
    """Clears nothing away."""

    def __init__(self, runs: Path, *, sweep: str, run_id: str, force: bool) -> None:
        self.runs, self.sweep, self.run_id, self.force = runs, sweep, run_id, force
        self.place = runs / sweep
        self.folder, self.is_renamed = self.place / "new", False
