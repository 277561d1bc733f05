"""How storage is divided among device, host and disk, and the bytes of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from kvbench.cache.codecs.base import Movable, Room
from kvbench.types import RunShape

if TYPE_CHECKING:
    from kvbench.cache.plan import LayerPlan

Tier = Literal["disk", "host", "device"]
TIERS: tuple[Tier, Tier, Tier] = ("host", "disk", "device")
Axis = Literal["sequence", "batch"]
Attend = Literal["device", "host"]
NOTHING_BYTES = 16  # that stand for storages while they are empty; the widest number
ALIGN = 64  # bytes: where storages begin within a buffer


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How storage is divided: along the axis disk comes first, then host, then device.

    Args:
        axis: "sequence": the oldest entries of every row lie furthest away; "batch": the first rows do.
        host: share in host memory.
        disk: share on disk.
    """

    axis: Axis
    host: float
    disk: float

    def cut(self, room: Room, first: int = 0) -> dict[Tier, range]:
        """Return which entries, or rows of the batch, lie where; a range may be empty.

        Args:
            room: what is divided.
            first: entries before this one lie nowhere.
        """
        size = room.entries - first if self.axis == "sequence" else room.batch
        disk, away = first + round(size * self.disk), first + round(size * (self.disk + self.host))
        return {"disk": range(first, disk), "host": range(disk, away), "device": range(away, first + size)}

    def bytes(self, room: Room, tier: Tier, first: int = 0) -> int:
        """Return the bytes of a storage that lie in one tier."""
        size = room.entries if self.axis == "sequence" else room.batch
        return room.bytes // size * len(self.cut(room, first)[tier]) if size > 0 else 0


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the entries of a layer lie between the steps that read them.

    Args:
        shares: how each storage is divided.
        prefetch: layers fetched ahead of need; 0 to fetch each when it attends.
        folder: where files lie; "" for the system's folder of temporary files.
        is_cold: whether what was read of a file comes from the disk again.
        recomputed: first tokens of which the host keeps what keys and values are made of.
        stages: pieces in which that is fetched; keys and values are made of each as soon as it is there.
        attend: "device": everything is copied to a buffer to be attended to; "host": what lies in the host's memory is
            attended to there.
    """

    shares: Shares
    prefetch: int
    folder: str
    is_cold: bool
    recomputed: int
    stages: int
    attend: Attend


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Bytes that lie elsewhere, and what that changes on the device, the buffers they pass through included."""

    device: int
    host: int
    disk: int


def rooms_of(plan: LayerPlan, run: RunShape, dtype: torch.dtype) -> list[Room]:
    """Return the storages of a layer that may lie elsewhere, as planned."""
    found: list[Room] = []
    for region in plan.regions(run):
        shape, slots = region.plan.shape, region.plan.capacity(region.run)
        for how, dim in zip(region.plan.formats, (shape.key_dim, shape.value_dim), strict=True):
            if plan.place is not None and plan.place.attend == "host" and plan.place.shares.axis == "batch":
                size = region.run.batch_size * how.allocated_bytes(shape.kv_heads, dim, slots, dtype)
                found.append(Room(batch=region.run.batch_size, entries=slots, bytes=size))
                continue
            assert isinstance(how, Movable)
            found += how.rooms(region.run.batch_size, shape.kv_heads, dim, slots, dtype)
    return found


def buffer_bytes(rooms: Iterable[Room]) -> int:
    """Return the bytes of a buffer that holds these storages one after another."""
    return sum(-(-room.bytes // ALIGN) * ALIGN for room in rooms)


def placed(plans: Sequence[LayerPlan], run: RunShape, dtype: torch.dtype) -> Placed:
    """Return the bytes that lie elsewhere, and by how many those on the device are more, or fewer, for it."""
    kept = [
        region.plan.handing.placed(region.plan, region.run, dtype)
        for plan in plans
        for region in plan.regions(run)
        if region.plan.handing is not None
    ]
    kept_host, kept_disk = sum(each.host for each in kept), sum(each.disk for each in kept)
    layers = [(plan.place, rooms_of(plan, run, dtype)) for plan in plans if plan.place is not None]
    if not layers:
        return Placed(device=0, host=kept_host, disk=kept_disk)
    host, disk, device = (
        sum(place.shares.bytes(room, tier, place.recomputed) for place, rooms in layers for room in rooms)
        for tier in TIERS
    )
    hidden = [hidden_bytes(plan, run, dtype) for plan in plans if plan.place is not None]
    count = num_buffers(len(layers), max(place.prefetch for place, _ in layers))
    brought = [0 if place.attend == "host" else buffer_bytes(rooms) for place, rooms in layers]
    buffers = count * max(rooms + mine for rooms, mine in zip(brought, hidden, strict=True))
    whole = sum(room.bytes for _, rooms in layers for room in rooms)
    known = sum(hidden) + sum(seen_bytes(plan, run) for plan in plans)
    return Placed(device=buffers + NOTHING_BYTES + device - whole, host=kept_host + host + known, disk=kept_disk + disk)


def hidden_bytes(plan: LayerPlan, run: RunShape, dtype: torch.dtype) -> int:
    """Return the bytes of what a layer's recomputed keys and values are made of."""
    if plan.place is None or plan.shape.key_projection is None:
        return 0
    return run.batch_size * plan.place.recomputed * plan.shape.key_projection.weight.shape[2] * dtype.itemsize


def seen_bytes(plan: LayerPlan, run: RunShape) -> int:
    """Return the bytes by which the host knows which of a layer's slots hold an entry, where it attends to them."""
    if plan.place is None or plan.place.attend == "device":
        return 0
    total = 0
    for region in plan.regions(run):
        batch, slots = region.run.batch_size, region.plan.capacity(region.run)
        room = Room(batch=batch, entries=slots, bytes=batch * region.plan.score_heads * slots)
        total += plan.place.shares.bytes(room, "host")
    return total


def num_buffers(layers: int, prefetch: int) -> int:
    """Return how many layers have their entries at hand at once: that which attends, and those fetched ahead."""
    return min(layers, prefetch + 1)
