"""A timed block: the device is settled once at each end, every step leaves a mark, nothing else happens in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from kvbench.measure.clock import Clock, Duration

LEFT_SHARE = 0.05  # of a block that may still run after its last mark


class Block(NamedTuple):
    """The times of a block's steps and of what came after them.

    Args:
        durations: one per step.
        behind_ns: from the last launch until the last step was done; next to nothing where the device starves.
        left_ns: from then until the whole device was idle; next to nothing unless work is hidden.
        joules: that the device used, or None where nobody counts.
    """

    durations: list[Duration]
    behind_ns: int
    left_ns: int
    joules: float | None

    @property
    def ms(self) -> float:
        """How long the steps took together [ms]."""
        return sum(duration.ms for duration in self.durations)


class WorkLeftRunning(RuntimeError):
    """Work was still running on the device after the last step had ended, so it was in nobody's time."""


def run_block(num_steps: int, step: Callable[[], None], clock: Clock) -> Block:
    """Time each of a run of steps.

    Args:
        num_steps: how many.
        step: does one.
        clock: of the device that does the work.
    """
    clock.settle()
    before = clock.joules()
    marks = [clock.mark()]
    for _ in range(num_steps):
        step()
        marks.append(clock.mark())
    launched = clock.now_ns()
    clock.reach(marks[-1])
    reached = clock.now_ns()
    clock.settle()
    left = clock.now_ns() - reached
    after = None if before is None else clock.joules()
    used = None if before is None or after is None else after - before
    return Block(clock.durations(marks), behind_ns=reached - launched, left_ns=left, joules=used)


def assert_quiet(blocks: Sequence[Block], arm: str) -> None:
    """Raise if an arm leaves work behind its steps, say on a side stream that nothing waits for.

    The middle of several blocks decides, because the host itself may be held up once.

    Args:
        blocks: of one arm; at least one.
        arm: whose they are, for the message.
    """
    share = median(block.left_ns / 1e6 / block.ms if block.ms > 0 else 0.0 for block in blocks)
    if share > LEFT_SHARE:
        raise WorkLeftRunning(
            f"{arm} leaves work on the device after its last step: {share:.0%} of a block's time more was needed until "
            f"the device was idle, at most {LEFT_SHARE:.0%} is allowed. Join its side streams inside the step."
        )
