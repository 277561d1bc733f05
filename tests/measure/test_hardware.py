"""Bandwidths are bytes over the device's own seconds; their sizes are checked, never their speed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kvbench.measure import hardware
from kvbench.measure.hardware import buffer_bytes, cpu_threads, measure_hardware, rates, stream_bandwidth
from tests.measure.fake_device import FakeDevice, FakeQueueClock
from tests.mutants import measure_hardware as mutants

CPU = torch.device("cpu")
KIB = 2**10


def check_rates(found: Callable[..., tuple[float, float, float]]) -> None:
    """Nine repeats of 1, 2, ... 9 ms after a slow one move 36 MB each."""
    device = FakeDevice(launch_ns=0)
    clock = FakeQueueClock(device)
    works = iter([80_000_000, *(number * 1_000_000 for number in range(1, 10))])
    middle, low, high = found(lambda: device.launch(next(works)), 36e6, clock, 9)
    assert middle == pytest.approx(36e6 / 5e-3)
    # the percentiles of 36, 18, 12, 9, 7.2, 6, ... GB/s lie at eight tenths of a place from each end
    assert low == pytest.approx(4e9 + 0.8 * 0.5e9)
    assert high == pytest.approx(36e9 - 0.8 * 18e9)


def test_a_rate_is_an_amount_over_the_devices_seconds() -> None:
    check_rates(rates)


@pytest.mark.parametrize("mutant", mutants.RATES)
def test_oracle_catches_another_rate(mutant: Callable[..., tuple[float, float, float]]) -> None:
    with pytest.raises(AssertionError):
        check_rates(mutant)


def test_each_capability_counts_what_it_moves() -> None:
    found = {capability.name: capability for capability in measure_hardware(CPU, 1, num_bytes=256 * KIB)}
    assert found.keys() == {"read", "copy", "gemv", "gemm"}
    assert {name: capability.num_bytes for name, capability in found.items()} == {
        "read": 256 * KIB,
        "copy": 512 * KIB,
        "gemv": 256 * KIB,
        "gemm": 0,
    }
    assert {capability.unit for capability in found.values()} == {"bytes/s", "flop/s"}
    for capability in found.values():
        assert 0 < capability.low <= capability.value <= capability.high
        assert capability.record()["num_threads"] == 1


def test_a_runs_bandwidth_is_that_of_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "buffer_bytes", lambda device: 256 * KIB)
    assert stream_bandwidth(CPU, 1) > 0


def test_threads_are_as_before_afterwards() -> None:
    before = torch.get_num_threads()
    with cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_a_buffer_exceeds_the_caches_and_leaves_memory_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "available_ram_bytes", lambda: 64 * 2**30)
    monkeypatch.setattr(hardware, "last_level_cache_bytes", lambda: 480 * 2**20)
    assert buffer_bytes(CPU) == 960 * 2**20
    monkeypatch.setattr(hardware, "last_level_cache_bytes", lambda: None)
    assert buffer_bytes(CPU) == 256 * 2**20
    monkeypatch.setattr(hardware, "available_ram_bytes", lambda: 2**30)
    assert buffer_bytes(CPU) == 128 * 2**20


def test_a_buffer_holds_random_numbers_throughout() -> None:
    data = hardware._filled(256 * KIB, CPU)
    assert data.nbytes == 256 * KIB
    assert data.std() == pytest.approx(1, abs=0.05)
    assert torch.equal(data, hardware._filled(256 * KIB, CPU))
