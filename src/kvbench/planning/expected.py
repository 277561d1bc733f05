"""What a decode step should take: its work over what the machine can do, fitted to the step of the full cache."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvbench.planning.cost import Cost, Dependent, Overlapped, Use, predict
from kvbench.planning.machine import Machine, Rate, Resource

FITTED: tuple[Resource, ...] = ("device_memory", "device_flops", "launch")  # what a step of the full cache needs


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a decode step does, on average over those that were timed.

    Args:
        read_bytes: of weights and cache, where the model computes.
        operations: multiplications and additions of the model and its attention.
        launches: operations that the device is given.
        up_bytes: from the host to the device.
        down_bytes: from the device to the host.
        disk_read_bytes: from disk.
        disk_written_bytes: to disk.
        near_bytes: copied on the device to what attention reads.
        recompute_flops: operations that make keys and values again.
        layers: whose entries lie elsewhere.
        overlaps: whether those of a layer come while another one computes.
        is_cold: whether the disk is read, or what memory keeps of it.
    """

    read_bytes: float
    operations: float
    launches: float
    up_bytes: float
    down_bytes: float
    disk_read_bytes: float
    disk_written_bytes: float
    near_bytes: float
    recompute_flops: float
    layers: int
    overlaps: bool
    is_cold: bool


def step_cost(work: Work, *, is_host: bool) -> Cost:
    """Return the work of a step: what is elsewhere comes, what is made again is made, the model computes.

    Args:
        work: of the step.
        is_host: whether the device is the host itself, so that all that comes is read and written in its memory.
    """
    came, layers = work.up_bytes + work.disk_read_bytes, work.layers
    staged = 0.0 if is_host else came + 2 * work.near_bytes
    disk: Resource = "disk_read" if work.is_cold else "disk_read_warm"
    bring, store = (
        (Use("host_memory", 2 * (came + work.near_bytes)), Use("host_memory", 2 * work.down_bytes))
        if is_host
        else (Use("host_to_device", came, layers), Use("device_to_host", work.down_bytes, layers))
    )
    model = Overlapped(
        (
            Use("device_memory", work.read_bytes + staged),
            Use("device_flops", work.operations),
            Use("launch", work.launches),
        )
    )
    fetch = Dependent((Use(disk, work.disk_read_bytes, layers), bring))
    again = Use("recompute_flops", work.recompute_flops, layers)
    compute = Dependent((again, model, store, Use("disk_write", work.disk_written_bytes, layers)))
    return Overlapped((fetch, compute)) if work.overlaps else Dependent((fetch, compute))


def fitted(machine: Machine, full: Work, measured_s: float) -> Machine:
    """Return the machine as slow as a step of the full cache found it, in what that step needs.

    Args:
        machine: as it was measured, each resource alone.
        full: a step of the full cache, all of it on the device.
        measured_s: that it took [s].
    """
    slower = measured_s / predict(step_cost(full, is_host=machine.is_host), machine).seconds
    rates = {name: _slowed(rate, slower) if name in FITTED else rate for name, rate in machine.rates.items()}
    return replace(machine, rates=rates)


def _slowed(rate: Rate, times: float) -> Rate:
    return replace(rate, per_s=rate.per_s / times, latency_s=rate.latency_s * times)


def link_seconds(work: Work, machine: Machine) -> float:
    """Return the least time in which what comes crosses the link [s]; 0 where there is none, or nobody measured it."""
    came = work.up_bytes + work.disk_read_bytes
    if machine.is_host or "host_to_device" not in machine.rates:
        return 0.0
    return came / machine.rate("host_to_device").per_s
