"""What the bytes alone allow: the least time of a step, the most a strategy can gain, and what bounds a step."""

from __future__ import annotations

from typing import Literal

Regime = Literal["memory_bound", "overhead_bound", "launch_bound"]

TOLERANCE = 0.05  # by which a measurement may beat what the bytes allow


class CeilingBeaten(RuntimeError):
    """A time that the bytes do not allow: the harness measured something else."""


def floor_ms(read_bytes: int, bandwidth_bytes_per_s: float) -> float:
    """Return the least time of a step [ms]: what it must read, at the bandwidth measured in this run.

    Args:
        read_bytes: weights and cache that a step reads.
        bandwidth_bytes_per_s: of reading, with the run's threads.
    """
    return read_bytes / bandwidth_bytes_per_s * 1e3


def ceiling(baseline_bytes: int, strategy_bytes: int) -> float:
    """Return the most that fewer bytes can speed a step up.

    Args:
        baseline_bytes: that a step of the baseline reads, weights included.
        strategy_bytes: that a step of the strategy reads, weights included.
    """
    return baseline_bytes / strategy_bytes


def check_ceiling(ratio: float, low: float, high: float, ceiling: float) -> None:
    """Raise if a speed-up beats its ceiling: no sync, skipped work or a broken clock.

    Holds where a step's time is the time to read its bytes; both the ratio and its interval must say so.

    Args:
        ratio: time of the strategy over time of the baseline.
        low: lower end of its interval.
        high: upper end of its interval.
        ceiling: most the bytes allow.
    """
    assert low <= ratio <= high
    if 1 / ratio > ceiling * (1 + TOLERANCE) and 1 / high > ceiling:
        raise CeilingBeaten(
            f"measured {1 / ratio:.2f}x [{1 / high:.2f}, {1 / low:.2f}], but the bytes read allow {ceiling:.2f}x: "
            f"the timing misses work, or the counted bytes are wrong"
        )


def check_floor(measured_ms: float, floor_ms: float, work: str) -> None:
    """Raise if a step took less time than some of its work takes.

    Reading takes it wherever the bytes do not fit in the processor's cache.

    Args:
        measured_ms: middle of the steps' times.
        floor_ms: least time of that work.
        work: what it is, for the message.
    """
    if measured_ms * (1 + TOLERANCE) < floor_ms:
        raise CeilingBeaten(
            f"measured {measured_ms:.3f} ms a step, but {work} takes {floor_ms:.3f} ms: "
            f"the timing misses work, or the counted bytes are wrong"
        )


def regime(*, read_bytes: int, cache_bytes: int, device_type: str, is_launch_bound: bool) -> Regime:
    """Return what bounds a step of the baseline.

    Args:
        read_bytes: weights and whole cache that it reads.
        cache_bytes: of the processor's last-level cache that this process can count on.
        device_type: "cpu", "cuda" or "mps".
        is_launch_bound: whether the device waited for the host.
    """
    if device_type == "cpu":
        return "overhead_bound" if read_bytes <= cache_bytes else "memory_bound"
    return "launch_bound" if is_launch_bound else "memory_bound"
