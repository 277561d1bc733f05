"""Rooflines against published arithmetic, and against a timer that misses work."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvbench.measure.roofline import CeilingBeaten, ceiling, check_ceiling, check_floor, floor_ms, regime
from kvbench.measure.statistics import ratio_interval
from tests.measure.fake_device import MS, FakeArm, FakeDevice, FakeQueueClock, default_settings, run
from tests.mutants import measure_roofline as mutants
from tests.mutants.measure_blocks import LaunchClock

GB = 10**9
Checker = Callable[[float, float, float, float], None]


def check_floor_time(floor: Callable[[int, float], float]) -> None:
    """A 7B model's 13.21 GB at 4.3 TB/s take 3.07 ms."""
    assert floor(13_210_000_000, 4.3e12) == pytest.approx(3.072, abs=0.001)


def test_a_floor_is_bytes_over_bandwidth() -> None:
    check_floor_time(floor_ms)


def test_oracle_catches_a_floor_in_gibibytes() -> None:
    with pytest.raises(AssertionError):
        check_floor_time(mutants.floor_in_gibibytes)


def test_a_ceiling_is_the_share_of_bytes_that_go() -> None:
    weights, cache = 15 * GB, 10 * GB
    assert ceiling(weights + cache, weights + cache // 5) == pytest.approx(25 / 17)
    assert ceiling(weights, weights) == 1


def check_checker(checker: Checker) -> None:
    """Only a speed-up beyond the tolerance and beyond its own noise is refused."""
    checker(0.5, 0.49, 0.51, 2.0)  # at the ceiling
    checker(0.48, 0.47, 0.49, 2.0)  # 4% above it
    checker(0.4, 0.3, 0.6, 2.0)  # far above, but the interval holds the ceiling
    checker(3.0, 2.9, 3.1, 2.0)  # slower
    with pytest.raises(CeilingBeaten, match=r"measured 2\.50x \[2\.44, 2\.56\], but the bytes read allow 2\.00x"):
        checker(0.4, 0.39, 0.41, 2.0)


def test_a_speed_up_beyond_its_ceiling_is_refused() -> None:
    check_checker(check_ceiling)


@pytest.mark.parametrize("mutant", mutants.CEILINGS)
def test_oracle_catches_another_ceiling(mutant: Checker) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception, CeilingBeaten)):
        check_checker(mutant)


def measured(clock_class: type[FakeQueueClock]) -> None:
    """Compare a step of 10 ms with one of 8 ms, whose launches differ more, and hold it against its bytes."""
    device = FakeDevice(launch_ns=0)

    def arm(work_ns: int, launch_ns: int) -> FakeArm:
        def step(index: int) -> int:
            device.now_ns += launch_ns
            return work_ns

        return FakeArm(device, step)

    arms = {"baseline": arm(10 * MS, launch_ns=1000), "h2o": arm(8 * MS, launch_ns=100)}
    result = run(arms, clock_class(device), default_settings(max_rounds=10))
    interval = ratio_interval(result.samples, "h2o", "baseline", "median")
    assert interval is not None
    check_ceiling(interval.value, interval.low, interval.high, ceiling(10 * GB, 8 * GB))


def test_a_good_timer_stays_under_the_ceiling() -> None:
    measured(FakeQueueClock)


def test_a_broken_timer_beats_the_ceiling_and_fails_the_run() -> None:
    with pytest.raises(CeilingBeaten):
        measured(LaunchClock)


def test_a_step_faster_than_its_bytes_can_be_read_is_refused() -> None:
    check_floor(9.6, 10.0, "reading its bytes")
    with pytest.raises(CeilingBeaten, match=r"measured 9\.400 ms a step, but reading its bytes takes 10\.000 ms"):
        check_floor(9.4, 10.0, "reading its bytes")


@pytest.mark.parametrize(
    ("read_bytes", "device_type", "is_launch_bound", "bound"),
    [
        (8_000_000, "cpu", False, "overhead_bound"),
        (32_000_000, "cpu", False, "overhead_bound"),
        (32_000_001, "cpu", False, "memory_bound"),
        (8_000_000, "cuda", False, "memory_bound"),
        (8_000_000, "cuda", True, "launch_bound"),
    ],
)
def test_what_fits_in_the_processors_cache_is_bound_by_overhead(
    read_bytes: int, device_type: str, is_launch_bound: bool, bound: str
) -> None:
    found = regime(
        read_bytes=read_bytes, cache_bytes=32_000_000, device_type=device_type, is_launch_bound=is_launch_bound
    )
    assert found == bound
