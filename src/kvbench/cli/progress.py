"""How far a run is, and the sweep that it belongs to, on the error stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from kvbench.runner import Progress, Result

    Outcome = Result | Exception

_NEVER_DONE = 0.999  # a stage that is done is followed by another; the clock stops at 1
_shared: ContextVar[Bar | None] = ContextVar("shared", default=None)  # the bars of a sweep that runs in this process


@contextmanager
def of_run(title: str, *, alone: bool) -> Iterator[Progress]:
    """Hold a bar for a run.

    Args:
        title: of the bar.
        alone: whether it is no sweep's; a sweep that another process shows has no bar here.
    """
    shared = _shared.get()
    if shared is not None:
        task = shared.add_task(title, total=1.0, stage="")
        yield lambda stage, share: shared.update(task, completed=min(share, _NEVER_DONE), stage=stage)
        shared.remove_task(task)
    elif alone:
        with _bar(Console(stderr=True)) as bar:
            task = bar.add_task(title, total=1.0, stage="")
            yield lambda stage, share: bar.update(task, completed=min(share, _NEVER_DONE), stage=stage)
    else:
        yield lambda stage, share: None


class OfSweep:
    """A line for every row of a sweep that is done, and below them, on a terminal, how far it all is.

    Args:
        labels: of the rows, in the order in which they are measured.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = labels
        self.done = 0
        self._measured_s: list[float] = []
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        self._bar = _bar(console, disable=not console.is_terminal)
        self._task = self._bar.add_task("all rows", total=len(labels), stage=self.standing)

    @property
    def standing(self) -> str:
        """How many rows are done and about how long the others take; rows measured before took none."""
        rows = f"{self.done} of {len(self.labels)} rows"
        left = len(self.labels) - self.done
        if not left or not self._measured_s:
            return rows
        mean_s = sum(self._measured_s) / len(self._measured_s)
        return f"{rows}, about {timedelta(seconds=round(left * mean_s))} left"

    @contextmanager
    def around(self, job: Callable[[DictConfig], Outcome]) -> Iterator[Callable[[DictConfig], Outcome]]:
        """Show the rows that a job measures, one after the other, in this process.

        Args:
            job: what measures one.
        """
        token = _shared.set(self._bar)
        try:
            with self._bar:
                yield lambda config: self._tell(job, config)
        finally:
            _shared.reset(token)

    def _tell(self, job: Callable[[DictConfig], Outcome], config: DictConfig) -> Outcome:
        began, outcome = time.monotonic(), None
        try:
            outcome = job(config)
            return outcome
        finally:
            label = self.labels[self.done]
            self.done += 1
            said = _said(outcome)
            if not said.endswith(_BEFORE):
                self._measured_s.append(time.monotonic() - began)
            self._bar.update(self._task, completed=self.done, stage=self.standing)
            self._bar.console.print(f"{self.standing}: {label}: {said}", markup=False)


_BEFORE = "measured before"


def _said(outcome: Outcome | None) -> str:
    """Return what became of a row, in a few words."""
    if outcome is None or isinstance(outcome, Exception):
        return "not run"
    status = str(outcome.rows.loc[outcome.rows["arm"] == "strategy", "status"].iloc[0])
    return status if outcome.is_new else f"{status}, {_BEFORE}"


def _bar(console: Console, *, disable: bool = False) -> Bar:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[stage]}"))
    return Bar(*columns, console=console, disable=disable)
