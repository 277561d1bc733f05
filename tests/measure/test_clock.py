"""The real clocks: what can be said of them without timing anything."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kvbench.measure import nvml
from kvbench.measure.blocks import WorkLeftRunning, assert_quiet, run_block
from kvbench.measure.clock import CudaClock, HostClock, Mark, clock_for
from kvbench.measure.nvml import GpuState, energy_j, read_gpu
from kvbench.measure.powercap import Packages

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def test_a_processor_has_the_hosts_clock() -> None:
    assert isinstance(clock_for(torch.device("cpu")), HostClock)


def test_a_device_without_a_clock_is_refused() -> None:
    with pytest.raises(ValueError, match=r"there is a clock for cpu, cuda and mps; got 'meta'\. Set model\.device\."):
        clock_for(torch.device("meta"))


def test_the_hosts_clock_never_goes_back() -> None:
    block = run_block(100, lambda: None, HostClock())
    assert all(duration.wall_ns >= 0 and duration.event_ms is None for duration in block.durations)


def test_a_processors_rate_is_not_followed() -> None:
    assert HostClock().rate_mhz() is None


class FakeLibrary:
    """A driver's library that knows one GPU and no memory clock."""

    def nvmlInit_v2(self) -> int:
        """Begin."""
        return 0

    def nvmlSystemGetDriverVersion(self, text: ctypes.Array[ctypes.c_char], length: ctypes.c_uint) -> int:
        """Write the version."""
        text.value = b"580.1"
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: object) -> int:
        """Know one GPU."""
        return 0 if uuid == b"GPU-1" else 6

    def nvmlDeviceGetClockInfo(self, handle: object, kind: int, value: object) -> int:
        """Tell the rate of the multiprocessors alone."""
        return self._write(value, 1980) if kind == 1 else 3

    def nvmlDeviceGetTemperature(self, handle: object, sensor: int, value: object) -> int:
        """Tell the temperature."""
        return self._write(value, 41)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object, value: object) -> int:
        """Count in thousandths of a joule."""
        return self._write(value, 2**40 + 1500)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: object, value: object) -> int:
        """Tell why it is no faster."""
        return self._write(value, 2**33 + 4)

    @staticmethod
    def _write(value: object, number: int) -> int:
        value._obj.value = number  # type: ignore[attr-defined]  # what ctypes.byref holds
        return 0


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    """Return a way to put another library in the driver's place."""

    def install(found: object) -> None:
        monkeypatch.setattr(nvml, "_library", lambda: found)

    return install


def test_a_gpu_is_read_through_the_drivers_library(library: Callable[[object], None]) -> None:
    library(FakeLibrary())
    assert read_gpu("GPU-1") == GpuState(
        driver="580.1", sm_mhz=1980, memory_mhz=None, temperature_c=41, throttle_reasons=2**33 + 4
    )
    assert read_gpu("GPU-2") is None
    assert energy_j("GPU-1") == 2**40 / 1e3 + 1.5
    assert energy_j("GPU-2") is None


def test_without_a_driver_there_is_no_gpu(library: Callable[[object], None]) -> None:
    library(None)
    assert read_gpu("GPU-1") is None
    assert energy_j("GPU-1") is None


def test_processors_are_counted_together_and_go_on_where_a_counter_begins_anew(tmp_path: Path) -> None:
    found = (("intel-rapl:0", "package-0", 40), ("intel-rapl:0:0", "core", 30), ("x", "package-1", 5))
    for name, kind, counted in found:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "name").write_text(f"{kind}\n")
        (folder / "energy_uj").write_text(f"{counted * 10**6}\n")
        (folder / "max_energy_range_uj").write_text(f"{100 * 10**6}\n")
    packages = Packages(tmp_path)
    assert packages.joules() == 45
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("10000000\n")
    assert packages.joules() == 100 + 10 + 5
    (tmp_path / "x" / "energy_uj").unlink()
    assert packages.joules() is None, "one of them says nothing any more"
    assert Packages(tmp_path / "nowhere").joules() is None


@pytest.mark.gpu
@needs_cuda
def test_cuda_events_see_work_that_a_launch_does_not_wait_for() -> None:
    device = torch.device("cuda")
    clock = CudaClock(device)
    square = torch.randn(4096, 4096, device=device)

    def step() -> None:
        for _ in range(10):
            square @ square

    run_block(4, step, clock)
    block = run_block(4, step, clock)
    assert all(duration.event_ms is not None and duration.event_ms > 0 for duration in block.durations)
    assert_quiet([block], "baseline")


@pytest.mark.gpu
@needs_cuda
def test_cuda_work_on_a_side_stream_is_caught() -> None:
    device = torch.device("cuda")
    clock, side = CudaClock(device), torch.cuda.Stream(device)
    square = torch.randn(4096, 4096, device=device)
    small = torch.randn(8, 8, device=device)

    def step() -> None:
        small @ small
        with torch.cuda.stream(side):
            for _ in range(10):
                square @ square

    run_block(4, step, clock)
    blocks = [run_block(4, step, clock) for _ in range(3)]
    with pytest.raises(WorkLeftRunning):
        assert_quiet(blocks, "h2o")


@pytest.mark.gpu
@needs_cuda
def test_a_cuda_block_synchronises_only_at_its_ends() -> None:
    device = torch.device("cuda")
    square = torch.randn(64, 64, device=device)

    class Strict(CudaClock):
        """Refuses to wait between settling and reaching the last mark."""

        def settle(self) -> None:
            super().settle()
            torch.cuda.set_sync_debug_mode("error")

        def reach(self, mark: Mark) -> None:
            torch.cuda.set_sync_debug_mode("default")
            super().reach(mark)

    def step() -> None:
        square @ square

    def peeking_step() -> None:
        square.sum().item()

    try:
        assert len(run_block(8, step, Strict(device)).durations) == 8
        with pytest.raises(RuntimeError, match="synchroniz"):
            run_block(8, peeking_step, Strict(device))
    finally:
        torch.cuda.set_sync_debug_mode("default")
