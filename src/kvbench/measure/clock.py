"""Clocks: when a step's work was done, as the device that did it sees it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol, cast

import torch

from kvbench.measure import nvml
from kvbench.measure.powercap import Packages


class Event(Protocol):
    """A point in a device's own queue of work."""

    def record(self) -> None:
        """Put the point behind the work launched so far."""

    def synchronize(self) -> None:
        """Wait until the device has reached the point."""

    def elapsed_time(self, end_event: Event) -> float:
        """Return the device's time from this point to a later one [ms]."""


class Mark(NamedTuple):
    """The end of a step: the host's clock [ns] and, on a device with a queue, a point in it."""

    wall_ns: int
    event: Event | None


class Duration(NamedTuple):
    """The time between two marks: by the host's clock and, where there is one, by the device's.

    With a device's clock the host's tells only how long the launching took.
    """

    wall_ns: int
    event_ms: float | None

    @property
    def ms(self) -> float:
        """How long the work took [ms]."""
        return self.wall_ns / 1e6 if self.event_ms is None else self.event_ms


class Clock(Protocol):
    """What a timed block needs to know of time."""

    device_type: str

    def settle(self) -> None:
        """Return when the device has nothing left to do."""

    def mark(self) -> Mark:
        """Mark the end of what was launched so far, without waiting for it."""

    def reach(self, mark: Mark) -> None:
        """Return when the device has done what was launched before the mark."""

    def now_ns(self) -> int:
        """Return the host's time [ns]."""

    def durations(self, marks: Sequence[Mark]) -> list[Duration]:
        """Return the time between each mark and the next; the device must have reached them."""

    def rate_mhz(self) -> int | None:
        """Return the rate at which the device's cores run now, or None where nobody says."""

    def joules(self) -> float | None:
        """Return the energy that the device has used since some moment [J], or None where nobody counts it."""


class HostClock:
    """The host's clock, for work that is done when the call returns."""

    device_type = "cpu"

    def __init__(self) -> None:
        """Find what counts the processors' energy."""
        self._packages = Packages()

    def settle(self) -> None:
        """Return at once: nothing is queued."""

    def mark(self) -> Mark:
        """Read the host's clock once."""
        return Mark(self.now_ns(), None)

    def reach(self, mark: Mark) -> None:
        """Return at once: nothing is queued."""

    def now_ns(self) -> int:
        """Return the host's time [ns]."""
        return time.perf_counter_ns()

    def durations(self, marks: Sequence[Mark]) -> list[Duration]:
        """Return the time between each mark and the next."""
        return [Duration(end.wall_ns - start.wall_ns, None) for start, end in pairwise(marks)]

    def rate_mhz(self) -> int | None:
        """Return None: a processor's rate is not followed."""
        return None

    def joules(self) -> float | None:
        """Return the energy of all processors."""
        return self._packages.joules()


class QueueClock:
    """Events in the queue of a device; each subclass says how its device makes them and waits."""

    device_type: str

    def __init__(self) -> None:
        """Begin without events."""
        self._free: list[Event] = []  # used again, so that timed blocks create none

    def new_event(self) -> Event:
        """Return an event that keeps the time."""
        raise NotImplementedError

    def settle(self) -> None:
        """Return when every stream of the device is idle."""
        raise NotImplementedError

    def rate_mhz(self) -> int | None:
        """Return None where the device does not say."""
        return None

    def joules(self) -> float | None:
        """Return None where the device does not count."""
        return None

    def mark(self) -> Mark:
        """Record an event behind the work launched so far."""
        event = self._free.pop() if self._free else self.new_event()
        event.record()
        return Mark(self.now_ns(), event)

    def reach(self, mark: Mark) -> None:
        """Return when the mark's own stream has come to it; other streams may still be busy."""
        assert mark.event is not None
        mark.event.synchronize()

    def now_ns(self) -> int:
        """Return the host's time [ns]."""
        return time.perf_counter_ns()

    def durations(self, marks: Sequence[Mark]) -> list[Duration]:
        """Return the time between each mark and the next, and keep the events for the next block."""
        events = [mark.event for mark in marks if mark.event is not None]
        spans = [start.elapsed_time(end) for start, end in pairwise(events)]
        walls = [end.wall_ns - start.wall_ns for start, end in pairwise(marks)]
        self._free.extend(events)
        return [Duration(wall, span) for wall, span in zip(walls, spans, strict=True)]


class CudaClock(QueueClock):
    """CUDA events on the current stream: one per step, one synchronisation per block.

    Args:
        device: does the work.
    """

    device_type = "cuda"

    def __init__(self, device: torch.device) -> None:
        """Find the device."""
        super().__init__()
        self.device = device
        self._uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"

    def new_event(self) -> Event:
        """Return a CUDA event that keeps the time."""
        return cast(Event, torch.cuda.Event(enable_timing=True))

    def settle(self) -> None:
        """Return when every stream of the device is idle."""
        torch.cuda.synchronize(self.device)

    def rate_mhz(self) -> int | None:
        """Return the rate of the multiprocessors."""
        state = nvml.read_gpu(self._uuid)
        return None if state is None else state.sm_mhz

    def joules(self) -> float | None:
        """Return the energy of the whole board."""
        return nvml.energy_j(self._uuid)


class MpsClock(QueueClock):
    """Metal events; untested: nobody has run this on such a machine."""

    device_type = "mps"

    def new_event(self) -> Event:
        """Return a Metal event that keeps the time."""
        return cast(Event, torch.mps.event.Event(enable_timing=True))

    def settle(self) -> None:
        """Return when the device is idle."""
        torch.mps.synchronize()


def clock_for(device: torch.device) -> Clock:
    """Return the clock of a device.

    Args:
        device: where the work runs.
    """
    if device.type == "cpu":
        return HostClock()
    if device.type == "cuda":
        return CudaClock(device)
    if device.type == "mps":
        return MpsClock()
    raise ValueError(f"there is a clock for cpu, cuda and mps; got {device.type!r}. Set model.device.")
