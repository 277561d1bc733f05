"""Broken microbenchmarks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kvbench.measure.blocks import run_block
from kvbench.measure.clock import Clock


def rates_with_warmup(
    operation: Callable[[], object], amount: float, clock: Clock, repeats: int
) -> tuple[float, float, float]:
    """Count the first, cold repeats."""
    block = run_block(repeats, lambda: (operation(), None)[1], clock)
    low, middle, high = np.percentile([amount / duration.ms * 1e3 for duration in block.durations], [10, 50, 90])
    return float(middle), float(low), float(high)


def rates_per_millisecond(
    operation: Callable[[], object], amount: float, clock: Clock, repeats: int
) -> tuple[float, float, float]:
    """Forget that a second has a thousand milliseconds."""
    run_block(1, lambda: (operation(), None)[1], clock)
    block = run_block(repeats, lambda: (operation(), None)[1], clock)
    low, middle, high = np.percentile([amount / duration.ms for duration in block.durations], [10, 50, 90])
    return float(middle), float(low), float(high)


RATES = (rates_with_warmup, rates_per_millisecond)
