"""Rooflines that let a broken timer through, or stop a good one."""

from __future__ import annotations

from kvbench.measure.roofline import CeilingBeaten


def never(ratio: float, low: float, high: float, ceiling: float) -> None:
    """Never look."""


def upside_down(ratio: float, low: float, high: float, ceiling: float) -> None:
    """Take the ratio of times for a speed-up."""
    if ratio > ceiling * 1.05:
        raise CeilingBeaten(ratio)


def without_tolerance(ratio: float, low: float, high: float, ceiling: float) -> None:
    """Raise at the slightest excess."""
    if 1 / ratio > ceiling:
        raise CeilingBeaten(ratio)


def without_interval(ratio: float, low: float, high: float, ceiling: float) -> None:
    """Take noise for a broken timer."""
    if 1 / ratio > ceiling * 1.05:
        raise CeilingBeaten(ratio)


def floor_in_gibibytes(read_bytes: int, bandwidth_bytes_per_s: float) -> float:
    """Divide gibibytes by gigabytes."""
    return read_bytes / 2**30 / (bandwidth_bytes_per_s / 1e9) * 1e3


CEILINGS = (never, upside_down, without_tolerance, without_interval)
