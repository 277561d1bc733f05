"""What this machine can do: bandwidths, matrix products and links, each as a median with its spread.

Buffers are larger than the processor's cache, and filled first, so that no page is touched for the first time in a
measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from kvbench.measure.blocks import run_block
from kvbench.measure.clock import Clock, clock_for
from kvbench.measure.environment import available_ram_bytes, last_level_cache_bytes

WARMUP, REPEATS, QUICK_REPEATS = 1, 10, 3
_LEAST_BUFFER = 256 * 2**20
_MOST_BUFFER_SHARE = 8  # of the free memory, one part in so many
_GEMM_WIDTH = {"cpu": 1024, "cuda": 8192, "mps": 2048}
_GEMV_INPUTS = 4096
_TILE = 2**20  # random numbers, laid out again and again: zeros are read faster


@dataclass(frozen=True, kw_only=True)
class Capability:
    """One measured number.

    Args:
        name: "read", "copy", "gemv", "gemm", "host_to_device", "device_to_host".
        device: where it was measured.
        num_threads: of the CPU.
        dtype: of the data.
        num_bytes: that one repeat moves; 0 where operations are counted.
        unit: "bytes/s" or "flop/s".
        value: median over the repeats.
        low: the tenth percentile.
        high: the ninetieth percentile.
    """

    name: str
    device: str
    num_threads: int
    dtype: str
    num_bytes: int
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

    def step() -> None:
        operation()

    run_block(WARMUP, step, clock)
    seconds = [duration.ms / 1e3 for duration in run_block(repeats, step, clock).durations]
    low, middle, high = np.percentile(amount / np.asarray(seconds), [10, 50, 90])
    return float(middle), float(low), float(high)


def stream_bandwidth(device: torch.device, num_threads: int) -> float:
    """Return the bandwidth of reading memory [bytes/s], quickly enough for every run.

    Args:
        device: whose memory.
        num_threads: of the CPU.
    """
    with cpu_threads(num_threads):
        data = _filled(buffer_bytes(device), device)
        return _read(data, clock_for(device), num_threads, QUICK_REPEATS).value


def measure_hardware(device: torch.device, num_threads: int, num_bytes: int | None = None) -> list[Capability]:
    """Return what a device can do.

    Args:
        device: which.
        num_threads: of the CPU.
        num_bytes: of the buffers; None for what is larger than the caches.
    """
    clock = clock_for(device)
    size = buffer_bytes(device) if num_bytes is None else num_bytes
    with cpu_threads(num_threads), torch.no_grad():
        data = _filled(size, device)
        found = [
            _read(data, clock, num_threads, REPEATS),
            _copy(data, clock, num_threads),
            _gemv(data, clock, num_threads),
            _gemm(device, clock, num_threads),
        ]
        if device.type == "cuda":
            found += _links(data, clock, num_threads)
    return found


def buffer_bytes(device: torch.device) -> int:
    """Return the size of a buffer that is read from memory, not from a cache, and leaves most memory free."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return min(8 * _LEAST_BUFFER, free // _MOST_BUFFER_SHARE)
    free = available_ram_bytes()
    return min(max(_LEAST_BUFFER, 2 * (last_level_cache_bytes() or 0)), free // _MOST_BUFFER_SHARE)


@contextmanager
def cpu_threads(num_threads: int) -> Iterator[None]:
    """Let torch use so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _filled(num_bytes: int, device: torch.device) -> Tensor:
    num = num_bytes // 4
    tile = torch.randn(min(num, _TILE), generator=torch.Generator(device).manual_seed(0), device=device)
    data = torch.empty(num // len(tile), len(tile), device=device)
    return data.copy_(tile).flatten()


def _capability(
    name: str,
    operation: Callable[[], object],
    data: Tensor,
    clock: Clock,
    *,
    num_threads: int,
    num_bytes: int,
    repeats: int,
) -> Capability:
    value, low, high = rates(operation, num_bytes, clock, repeats)
    return Capability(
        name=name,
        device=str(data.device),
        num_threads=num_threads,
        dtype=str(data.dtype).removeprefix("torch."),
        num_bytes=num_bytes,
        unit="bytes/s",
        value=value,
        low=low,
        high=high,
    )


def _read(data: Tensor, clock: Clock, num_threads: int, repeats: int) -> Capability:
    left, right = data.chunk(2)
    right = right[: len(left)]
    ways: list[Callable[[], Tensor]] = [data.sum, lambda: torch.dot(left[: len(right)], right)]
    found = [
        _capability("read", way, data, clock, num_threads=num_threads, num_bytes=data.nbytes, repeats=repeats)
        for way in ways
    ]
    return max(found, key=lambda capability: capability.value)


def _copy(data: Tensor, clock: Clock, num_threads: int) -> Capability:
    target = torch.empty_like(data).fill_(1)
    moved = 2 * data.nbytes  # read once, written once
    return _capability(
        "copy", lambda: target.copy_(data), data, clock, num_threads=num_threads, num_bytes=moved, repeats=REPEATS
    )


def _gemv(data: Tensor, clock: Clock, num_threads: int) -> Capability:
    width = min(_GEMV_INPUTS, len(data))
    weight = data[: len(data) // width * width].view(-1, width).to(_model_dtype(data.device))
    vector = weight[:1].clone()
    return _capability(
        "gemv",
        lambda: torch.nn.functional.linear(vector, weight),
        weight,
        clock,
        num_threads=num_threads,
        num_bytes=weight.nbytes,
        repeats=REPEATS,
    )


def _gemm(device: torch.device, clock: Clock, num_threads: int) -> Capability:
    width = _GEMM_WIDTH[device.type]
    square = _filled(4 * width * width, device).view(width, width).to(_model_dtype(device))
    value, low, high = rates(lambda: square @ square, 2 * width**3, clock, REPEATS)
    return Capability(
        name="gemm",
        device=str(device),
        num_threads=num_threads,
        dtype=str(square.dtype).removeprefix("torch."),
        num_bytes=0,
        unit="flop/s",
        value=value,
        low=low,
        high=high,
    )


def _links(data: Tensor, clock: Clock, num_threads: int) -> list[Capability]:
    pinned = torch.empty(len(data), dtype=data.dtype, pin_memory=True).fill_(1)
    ways: dict[str, Callable[[], Tensor]] = {
        "host_to_device": lambda: data.copy_(pinned, non_blocking=True),
        "device_to_host": lambda: pinned.copy_(data, non_blocking=True),
    }
    return [
        _capability(name, way, data, clock, num_threads=num_threads, num_bytes=data.nbytes, repeats=REPEATS)
        for name, way in ways.items()
    ]


def _model_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else torch.bfloat16
