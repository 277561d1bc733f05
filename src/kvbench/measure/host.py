"""The machine around a measurement: its clock, its scheduler and its other processes."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import Protocol

_STAT = Path("/proc/stat")
_LEAST_INTERVAL_S = 0.1  # the kernel counts in hundredths of a second
_BUSY_COLUMNS = (1, 2, 3, 6, 7, 8)  # user, nice, system, irq, softirq, steal; not idle and iowait


class Host(Protocol):
    """What a measurement asks of the machine, outside its timed blocks."""

    num_cpus: int

    def now_s(self) -> float:
        """Return the time since some moment [s]."""

    def sleep(self, seconds: float) -> None:
        """Wait."""

    def switches(self) -> int:
        """Return how often this process was made to give up a core."""

    def busy_cores(self) -> float:
        """Return how many cores other processes kept busy since the last call."""


class LocalHost:
    """The machine this runs on. Without /proc other processes are taken to be idle."""

    def __init__(self) -> None:
        """Count the cores and begin to watch them."""
        self.num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._busy = 0.0
        self._last = (time.monotonic(), _busy_s(), time.process_time())

    def now_s(self) -> float:
        """Return the time since some moment [s]."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def switches(self) -> int:
        """Return how often this process was made to give up a core."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw

    def busy_cores(self) -> float:
        """Return how many cores other processes kept busy since the last call, or in the last tenth of a second."""
        now = (time.monotonic(), _busy_s(), time.process_time())
        elapsed, all_s, own_s = (new - old for new, old in zip(now, self._last, strict=True))
        if elapsed >= _LEAST_INTERVAL_S:
            self._busy, self._last = max(0.0, (all_s - own_s) / elapsed), now
        return self._busy


def _busy_s() -> float:
    if not _STAT.exists():
        return 0.0
    words = _STAT.read_text().split("\n", 1)[0].split()
    return sum(int(words[column]) for column in _BUSY_COLUMNS) / os.sysconf("SC_CLK_TCK")
