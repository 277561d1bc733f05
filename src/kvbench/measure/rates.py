"""How much of something is done per second: the median of repeats with its spread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from kvbench.measure.blocks import run_block
from kvbench.measure.clock import Clock

WARMUP, REPEATS = 1, 10


@dataclass(frozen=True, kw_only=True)
class Capability:
    """One measured number.

    Args:
        name: what was measured; rows of one name are of one record.
        device: where it was measured; the folder of a disk.
        num_threads: of the CPU.
        dtype: of the data.
        num_bytes: that one repeat moves; 0 where operations are counted.
        shape: of a product, rows x inputs x outputs; "" for none.
        unit: "bytes/s", "flop/s", "launches/s" or "s".
        value: median over the repeats.
        low: the tenth percentile.
        high: the ninetieth percentile.
    """

    name: str
    device: str
    num_threads: int
    dtype: str
    num_bytes: int
    shape: str
    unit: str
    value: float
    low: float
    high: float

    def record(self) -> dict[str, str | int | float]:
        """Return a plain row."""
        return asdict(self)


def rates(operation: Callable[[], object], amount: float, clock: Clock, repeats: int) -> tuple[float, float, float]:
    """Return the median, the tenth and the ninetieth percentile of an amount per second.

    Args:
        operation: does the work once.
        amount: bytes or operations that it stands for.
        clock: of the device that does the work.
        repeats: timed, after one that is not.
    """
    low, middle, high = np.percentile(amount / np.asarray(seconds(operation, clock, repeats)), [10, 50, 90])
    return float(middle), float(low), float(high)


def seconds(operation: Callable[[], object], clock: Clock, repeats: int) -> list[float]:
    """Return how long work takes each time [s].

    Args:
        operation: does the work once.
        clock: of the device that does the work.
        repeats: timed, after one that is not.
    """

    def step() -> None:
        operation()

    run_block(WARMUP, step, clock)
    return [duration.ms / 1e3 for duration in run_block(repeats, step, clock).durations]
