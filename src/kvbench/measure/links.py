"""The link between a device and its host: how long a transfer takes to begin, and what it moves per second then."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from kvbench.measure.clock import Clock
from kvbench.measure.rates import REPEATS, Capability, seconds

SIZES = (4 * 2**10, 64 * 2**10, 2**20, 16 * 2**20)  # beside the largest

Copy = Callable[[int], None]  # of so many bytes


def measure_links(device: torch.device, num_bytes: int, clock: Clock, num_threads: int) -> list[Capability]:
    """Return bandwidth and latency of a CUDA device's link, from pinned memory and other, each way and both at once.

    Args:
        device: a CUDA device.
        num_bytes: of the largest transfer.
        clock: of the device.
        num_threads: of the CPU.
    """
    here, there = (torch.empty(num_bytes, dtype=torch.uint8, device=device).fill_(1) for _ in range(2))
    found: list[Capability] = []
    for kind, is_pinned in (("", True), ("_pageable", False)):
        host, other = (torch.empty(num_bytes, dtype=torch.uint8, pin_memory=is_pinned).fill_(1) for _ in range(2))
        ways: dict[str, tuple[Copy, int]] = {
            f"host_to_device{kind}": (copying(here, host), 1),
            f"device_to_host{kind}": (copying(host, here), 1),
        }
        if is_pinned:
            back = torch.cuda.Stream(device)
            ways["both_directions"] = (both_ways(copying(here, host), copying(other, there), back), 2)
        for name, (copy, times) in ways.items():
            found += affine(
                name, copy, num_bytes, clock, times=times, facts={"device": str(device), "num_threads": num_threads}
            )
    return found


def copying(target: Tensor, source: Tensor) -> Copy:
    """Return what copies the first bytes of one tensor into another."""

    def copy(num_bytes: int) -> None:
        target[:num_bytes].copy_(source[:num_bytes], non_blocking=True)

    return copy


def both_ways(forth: Copy, back: Copy, side: torch.cuda.Stream) -> Copy:
    """Return what copies in both directions at once; the current stream waits for the other."""

    def copy(num_bytes: int) -> None:
        main = torch.cuda.current_stream(side.device)
        side.wait_stream(main)
        forth(num_bytes)
        with torch.cuda.stream(side):
            back(num_bytes)
        main.wait_stream(side)

    return copy


def affine(
    name: str, copy: Copy, num_bytes: int, clock: Clock, *, times: int, facts: dict[str, str | int]
) -> list[Capability]:
    """Return the bandwidth and the latency that explain the times of transfers of several sizes.

    Args:
        name: of the way.
        copy: moves so many bytes.
        num_bytes: of the largest transfer.
        clock: of the device.
        times: bytes that are moved for each of those: 2 where they go both ways.
        facts: device and threads.
    """
    sizes = sorted({*(size for size in SIZES if size < num_bytes), num_bytes})
    measured = [seconds(lambda size=size: copy(size), clock, REPEATS) for size in sizes]  # type: ignore[misc]
    fits = [fitted(sizes, [float(np.percentile(one, share)) for one in measured]) for share in (10, 50, 90)]
    bandwidths = [times / each for _, each in fits]
    latencies = [begin for begin, _ in fits]

    def capability(called: str, unit: str, values: Sequence[float]) -> Capability:
        return Capability(
            name=called,
            dtype="uint8",
            num_bytes=times * num_bytes,
            shape="",
            unit=unit,
            value=values[1],
            low=min(values),
            high=max(values),
            **facts,  # type: ignore[arg-type]
        )

    return [capability(name, "bytes/s", bandwidths), capability(f"{name}_latency", "s", latencies)]


def fitted(sizes: Sequence[int], times: Sequence[float]) -> tuple[float, float]:
    """Return the latency [s] and the seconds per byte that come closest to times, in shares of each of them."""
    weights = 1 / np.asarray(times)
    rows = np.stack([weights, np.asarray(sizes) * weights], axis=1)
    (begin, each), *_ = np.linalg.lstsq(rows, np.ones(len(sizes)), rcond=None)
    if begin < 0:  # no transfer begins before it is asked for
        return 0.0, float((rows[:, 1] @ np.ones(len(sizes))) / (rows[:, 1] @ rows[:, 1]))
    return float(begin), float(each)
