"""What this machine can do: bandwidths, matrix products and links, each as a median with its spread.

Buffers are larger than the processor's cache, and filled first, so that no page is touched for the first time in a
measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvbench.measure.clock import Clock, clock_for
from kvbench.measure.environment import available_ram_bytes, last_level_cache_bytes
from kvbench.measure.links import measure_links
from kvbench.measure.rates import REPEATS, Capability, rates

QUICK_REPEATS = 3
_LEAST_BUFFER = 256 * 2**20
_MOST_BUFFER_SHARE = 8  # of the free memory, one part in so many
_GEMM_WIDTH = {"cpu": 1024, "cuda": 8192, "mps": 2048}
_GEMV_INPUTS = 4096
_RECOMPUTED_ROWS = {"cpu": 1024, "cuda": 8192, "mps": 2048}  # tokens whose keys and values are made at once
_LAUNCHES = 1000
_TILE = 2**20  # random numbers, laid out again and again: zeros are read faster


def stream_bandwidth(device: torch.device, num_threads: int) -> float:
    """Return the bandwidth of reading memory [bytes/s], quickly.

    Args:
        device: whose memory.
        num_threads: of the CPU.
    """
    with cpu_threads(num_threads):
        data = _filled(buffer_bytes(device), device)
        return _read(data, clock_for(device), num_threads, QUICK_REPEATS).value


def step_capabilities(device: torch.device, num_threads: int) -> list[Capability]:
    """Return what bounds a decode step, quickly enough for every run: reading, products and launches.

    Args:
        device: that computes; a CPU's memory is the host's, too.
        num_threads: of the CPU.
    """
    clock, width = clock_for(device), _GEMM_WIDTH[device.type]
    with cpu_threads(num_threads), torch.no_grad():
        read = _read(_filled(buffer_bytes(device), device), clock, num_threads, QUICK_REPEATS)
        product = _gemm("gemm", (width, width, width), device, clock, num_threads, QUICK_REPEATS)
        found = [read, product, _launch(device, clock, num_threads, QUICK_REPEATS)]
    return [*found, replace(read, name="host_read")] if device.type == "cpu" else found


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Sizes of a model whose products are measured.

    Args:
        hidden: width of a token between the layers.
        kv_width: numbers of a token's keys and values in a layer.
        batch_size: rows of a decode step.
    """

    hidden: int
    kv_width: int
    batch_size: int


def measure_hardware(
    device: torch.device, num_threads: int, *, widths: Widths | None, num_bytes: int | None = None
) -> list[Capability]:
    """Return what a device can do and, of a GPU, what its host and the link between them can.

    Args:
        device: which.
        num_threads: of the CPU.
        widths: of a model whose products are measured too, or None.
        num_bytes: of the buffers; None for what is larger than the caches.
    """
    with cpu_threads(num_threads), torch.no_grad():
        found = _compute(device, num_threads, widths, buffer_bytes(device) if num_bytes is None else num_bytes)
        if device.type == "cuda":
            size = buffer_bytes(device) if num_bytes is None else num_bytes
            found += measure_links(device, size, clock_for(device), num_threads)
            found += _host(num_threads, num_bytes)
    return found


def _compute(device: torch.device, num_threads: int, widths: Widths | None, num_bytes: int) -> list[Capability]:
    clock, width = clock_for(device), _GEMM_WIDTH[device.type]
    data = _filled(num_bytes, device)
    found = [
        _read(data, clock, num_threads, REPEATS),
        _copy(data, clock, num_threads),
        _gemv("gemv", data, clock, num_threads, rows=1, inputs=_GEMV_INPUTS),
        _gemm("gemm", (width, width, width), device, clock, num_threads, REPEATS),
        _launch(device, clock, num_threads, REPEATS),
    ]
    if widths is not None:
        recompute = (_RECOMPUTED_ROWS[device.type], widths.hidden, widths.kv_width)
        found += [
            _gemm("gemm_recompute", recompute, device, clock, num_threads, REPEATS),
            _gemv("gemv_decode", data, clock, num_threads, rows=widths.batch_size, inputs=widths.hidden),
        ]
    return found


def _host(num_threads: int, num_bytes: int | None) -> list[Capability]:
    host, width = torch.device("cpu"), _GEMM_WIDTH["cpu"]
    clock = clock_for(host)
    data = _filled(buffer_bytes(host) if num_bytes is None else num_bytes, host)
    return [
        replace(_read(data, clock, num_threads, REPEATS), name="host_read"),
        _gemm("host_gemm", (width, width, width), host, clock, num_threads, REPEATS),
    ]


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
    data = torch.empty(-(-num // len(tile)), len(tile), device=device)
    return data.copy_(tile).flatten()[:num]


def _capability(
    name: str,
    operation: Callable[[], object],
    data: Tensor,
    clock: Clock,
    *,
    num_threads: int,
    num_bytes: int,
    repeats: int,
    shape: str = "",
) -> Capability:
    value, low, high = rates(operation, num_bytes, clock, repeats)
    return Capability(
        name=name,
        device=str(data.device),
        num_threads=num_threads,
        dtype=str(data.dtype).removeprefix("torch."),
        num_bytes=num_bytes,
        shape=shape,
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


def _gemv(name: str, data: Tensor, clock: Clock, num_threads: int, *, rows: int, inputs: int) -> Capability:
    width = min(inputs, len(data))
    weight = data[: len(data) // width * width].view(-1, width).to(_model_dtype(data.device))
    vectors = weight[:1].repeat(rows, 1)
    return _capability(
        name,
        lambda: torch.nn.functional.linear(vectors, weight),
        weight,
        clock,
        num_threads=num_threads,
        num_bytes=weight.nbytes,
        repeats=REPEATS,
        shape=f"{rows}x{width}x{len(weight)}",
    )


def _gemm(
    name: str, shape: tuple[int, int, int], device: torch.device, clock: Clock, num_threads: int, repeats: int
) -> Capability:
    rows, inputs, outputs = shape
    left = _filled(4 * rows * inputs, device).view(rows, inputs).to(_model_dtype(device))
    right = _filled(4 * inputs * outputs, device).view(inputs, outputs).to(_model_dtype(device))
    value, low, high = rates(lambda: left @ right, 2 * rows * inputs * outputs, clock, repeats)
    return Capability(
        name=name,
        device=str(device),
        num_threads=num_threads,
        dtype=str(left.dtype).removeprefix("torch."),
        num_bytes=0,
        shape="x".join(map(str, shape)),
        unit="flop/s",
        value=value,
        low=low,
        high=high,
    )


def _launch(device: torch.device, clock: Clock, num_threads: int, repeats: int) -> Capability:
    number = torch.zeros(1, device=device)

    def launches() -> None:
        for _ in range(_LAUNCHES):
            number.add_(1)

    value, low, high = rates(launches, _LAUNCHES, clock, repeats)
    return Capability(
        name="launch",
        device=str(device),
        num_threads=num_threads,
        dtype="float32",
        num_bytes=0,
        shape="",
        unit="launches/s",
        value=value,
        low=low,
        high=high,
    )


def _model_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else torch.bfloat16
