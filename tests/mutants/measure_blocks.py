"""Broken clocks and blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvbench.measure.blocks import Block
from kvbench.measure.clock import Clock, Duration, Mark
from tests.measure.fake_device import FakeQueueClock


class LaunchClock(FakeQueueClock):
    """Takes the time at which work was launched for the time at which it was done."""

    def durations(self, marks: Sequence[Mark]) -> list[Duration]:
        """Return the host's times as if they were the device's."""
        return [Duration(times.wall_ns, times.wall_ns / 1e6) for times in super().durations(marks)]


class UnsettledClock(FakeQueueClock):
    """Never waits, so that earlier work runs into the first step."""

    def settle(self) -> None:
        """Do nothing."""


class ForgetfulClock(FakeQueueClock):
    """Uses an event again while it is still needed."""

    def mark(self) -> Mark:
        """Record an event and hand it out to the next step as well."""
        mark = super().mark()
        assert mark.event is not None
        self._free.append(mark.event)
        return mark


def block_that_settles_every_step(num_steps: int, step: Callable[[], None], clock: Clock) -> Block:
    """Wait for the device between the marks: the host's overhead is no longer hidden."""
    clock.settle()
    marks = [clock.mark()]
    for _ in range(num_steps):
        step()
        clock.settle()
        marks.append(clock.mark())
    return Block(clock.durations(marks), behind_ns=0, left_ns=0, joules=None)


def block_that_settles_before_it_looks(num_steps: int, step: Callable[[], None], clock: Clock) -> Block:
    """Wait for all streams at once: what was hidden on one of them is not seen."""
    clock.settle()
    marks = [clock.mark()]
    for _ in range(num_steps):
        step()
        marks.append(clock.mark())
    clock.settle()
    start = clock.now_ns()
    clock.reach(marks[-1])
    return Block(clock.durations(marks), behind_ns=0, left_ns=clock.now_ns() - start, joules=None)


CLOCKS = (LaunchClock, UnsettledClock, ForgetfulClock)
