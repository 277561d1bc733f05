"""A link's latency and bandwidth explain its times; what is copied arrives."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from kvbench.measure.links import affine, copying, fitted
from tests.measure.fake_device import FakeDevice, FakeQueueClock
from tests.mutants import measure_links as mutants

MIB = 2**20


def check_link(fit: Callable[[Sequence[int], Sequence[float]], tuple[float, float]]) -> None:
    """A link that needs 20 us to begin and then a nanosecond for 8 bytes has 8 GB/s, and none begins before 0."""
    sizes = [4096, 65536, MIB, 64 * MIB]
    assert fit(sizes, [20e-6 + size / 8e9 for size in sizes]) == pytest.approx((20e-6, 1 / 8e9))
    begin, each = fit([1000, 2000], [0.9e-6, 2.2e-6])  # a line through these begins before 0
    assert begin == 0
    assert each == pytest.approx((1 / 0.9e-3 + 1 / 1.1e-3) / (1 / 0.9e-3**2 + 1 / 1.1e-3**2) * 1e-6)


def test_a_fit_finds_latency_and_bandwidth() -> None:
    check_link(fitted)


@pytest.mark.parametrize("mutant", mutants.FITS)
def test_oracle_catches_another_fit(mutant: Callable[[Sequence[int], Sequence[float]], tuple[float, float]]) -> None:
    with pytest.raises(AssertionError):
        check_link(mutant)


def test_a_way_is_timed_on_the_devices_clock_at_all_sizes() -> None:
    device, asked = FakeDevice(launch_ns=0), set()

    def copy(num_bytes: int) -> None:
        asked.add(num_bytes)
        device.launch(30_000 + num_bytes // 4)

    facts: dict[str, str | int] = {"device": "cuda:0", "num_threads": 1}
    bandwidth, latency = affine("both_directions", copy, 64 * MIB, FakeQueueClock(device), times=2, facts=facts)
    assert asked == {4096, 65536, MIB, 16 * MIB, 64 * MIB}
    assert (bandwidth.name, bandwidth.unit, bandwidth.num_bytes) == ("both_directions", "bytes/s", 128 * MIB)
    assert (latency.name, latency.unit) == ("both_directions_latency", "s")
    for one, expected in ((bandwidth, 8e9), (latency, 30e-6)):
        assert one.low == pytest.approx(expected)
        assert one.value == pytest.approx(expected)
        assert one.high == pytest.approx(expected)


def test_only_the_first_bytes_are_copied() -> None:
    target, source = torch.zeros(8, dtype=torch.uint8), torch.arange(8, dtype=torch.uint8)
    copying(target, source)(3)
    assert target.tolist() == [0, 1, 2, 0, 0, 0, 0, 0]
