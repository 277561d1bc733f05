"""Fits that misread the times of a link."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def without_latency(sizes: Sequence[int], times: Sequence[float]) -> tuple[float, float]:
    """Take the largest transfer alone."""
    return 0.0, times[-1] / sizes[-1]


def per_microsecond(sizes: Sequence[int], times: Sequence[float]) -> tuple[float, float]:
    """Mistake the unit of the slope."""
    each, begin = np.polyfit(sizes, times, 1, w=1 / np.asarray(times))
    return float(begin), float(each * 1e6)


def before_it_is_asked(sizes: Sequence[int], times: Sequence[float]) -> tuple[float, float]:
    """Let a transfer begin before 0."""
    each, begin = np.polyfit(sizes, times, 1, w=1 / np.asarray(times))
    return float(begin), float(each)


FITS = (without_latency, per_microsecond, before_it_is_asked)
