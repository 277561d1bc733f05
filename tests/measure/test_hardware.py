"""Bandwidths are bytes over the device's own seconds; their sizes are checked, never their speed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kvbench.measure import hardware
from kvbench.measure.hardware import (
    Widths,
    buffer_bytes,
    cpu_threads,
    measure_hardware,
    step_capabilities,
    stream_bandwidth,
)
from kvbench.measure.rates import rates
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
    widths = Widths(hidden=64, kv_width=32, batch_size=3)
    found = {capability.name: capability for capability in measure_hardware(CPU, 1, widths=widths, num_bytes=256 * KIB)}
    assert {name: (one.num_bytes, one.shape, one.unit) for name, one in found.items()} == {
        "read": (256 * KIB, "", "bytes/s"),
        "copy": (512 * KIB, "", "bytes/s"),
        "gemv": (256 * KIB, "1x4096x16", "bytes/s"),
        "gemm": (0, "1024x1024x1024", "flop/s"),
        "launch": (0, "", "launches/s"),
        "gemm_recompute": (0, "1024x64x32", "flop/s"),
        "gemv_decode": (256 * KIB, "3x64x1024", "bytes/s"),
    }
    for capability in found.values():
        assert 0 < capability.low <= capability.value <= capability.high
        assert capability.record()["num_threads"] == 1


def test_a_model_has_products_of_its_own() -> None:
    names = {capability.name for capability in measure_hardware(CPU, 1, widths=None, num_bytes=256 * KIB)}
    assert names == {"read", "copy", "gemv", "gemm", "launch"}


def test_a_host_is_measured_beside_its_device() -> None:
    assert [capability.name for capability in hardware._host(1, 256 * KIB)] == ["host_read", "host_gemm"]


def test_a_runs_bandwidth_is_that_of_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "buffer_bytes", lambda device: 256 * KIB)
    assert stream_bandwidth(CPU, 1) > 0


def test_a_runs_step_is_bound_by_reading_products_and_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "buffer_bytes", lambda device: 256 * KIB)
    found = {one.name: one for one in step_capabilities(CPU, 1)}
    assert set(found) == {"read", "gemm", "launch", "host_read"}
    assert found["host_read"].value == found["read"].value  # a host's memory is its own


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
    assert hardware._filled(4 * (2**20 + 5), CPU).numel() == 2**20 + 5
