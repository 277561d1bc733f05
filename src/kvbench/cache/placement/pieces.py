"""Parts of a storage, each in a tier of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kvbench.cache.codecs.base import Room
from kvbench.cache.placement.rooms import Axis, Place, Tier
from kvbench.cache.placement.tiers import OnDevice, OnDisk, OnHost, Part, Traffic
from kvbench.kernels.attend import Entries

Make = Callable[[Tier, torch.Size], Part]


@dataclass(frozen=True)
class Piece:
    """A part of one storage.

    Args:
        axis: along which the storage is divided.
        where: rows of dimension 2, or of the batch, that lie here.
        part: where that is.
    """

    axis: Axis
    where: range
    part: Part

    @property
    def tier(self) -> Tier:
        """Where that is."""
        return self.part.tier

    def within(self, rows: Tensor, start: int) -> tuple[Tensor, int]:
        """Return those of rows [B, G, n, ...] from `start` on that lie here, and where they begin in the part."""
        if self.axis == "batch":
            return rows[self.where.start : self.where.stop], start
        first = max(start, self.where.start)
        last = max(first, min(start + rows.shape[2], self.where.stop))
        return rows[:, :, first - start : last - start], first - self.where.start


def divide(place: Place, like: Tensor, size: torch.Size, make: Make | None = None) -> list[Piece]:
    """Return the parts of a storage that are not empty, without anything in them.

    Args:
        place: which part lies where.
        like: a tensor of the storage's dtype, on its device.
        size: of the storage [B, G, rows, ...].
        make: makes a part of a tier with so many rows; by default rows as they are.
    """
    make = make or partial(_part, place, like)
    found = []
    for tier, where in place.shares.cut(room_of(size, like.dtype), place.recomputed).items():
        mine = list(size)
        mine[2 if place.shares.axis == "sequence" else 0] = len(where)
        if math.prod(mine) > 0:
            found.append(Piece(place.shares.axis, where, make(tier, torch.Size(mine))))
    return found


def _part(place: Place, like: Tensor, tier: Tier, size: torch.Size) -> Part:
    if tier == "disk":
        return OnDisk(like, size, place.folder, is_cold=place.is_cold)
    return OnHost(like, size) if tier == "host" else OnDevice(like.new_empty(size))


def room_of(size: torch.Size, dtype: torch.dtype) -> Room:
    """Return what a storage of this size takes."""
    return Room(batch=size[0], entries=size[2], bytes=size.numel() * dtype.itemsize)


class Divided:
    """Keys, or values, as the model made them, in parts that stay where they are and are written there.

    Args:
        data: what is divided [B, G, capacity, D].
        used: rows of it in use.
        place: which part lies where.
        traffic: counts what moves.
    """

    def __init__(self, data: Tensor, used: int, place: Place, traffic: Traffic) -> None:
        self._place, self._traffic, self._like = place, traffic, data.new_empty(0)
        self._divide(data.shape)
        self.write(0, data.narrow(2, 0, used))

    def _divide(self, size: torch.Size) -> None:
        self._size, self.pieces = size, divide(self._place, self._like, size, self._part)

    def _part(self, tier: Tier, size: torch.Size) -> Part:
        return OnHost(self._like, size) if tier == "host" else OnDevice(self._like.new_empty(size))

    @property
    def capacity(self) -> int:
        """Slots per row and head."""
        return self._size[2]

    def piece(self, tier: Tier) -> Piece | None:
        """Return the part that lies in one tier; None where there is none."""
        return next((piece for piece in self.pieces if piece.tier == tier), None)

    def write(self, start: int, entries: Tensor, position: Tensor | int | None = None) -> None:
        """Store entries [B, G, T, D] at slots start .. start + T."""
        for piece in self.pieces:
            rows, at = piece.within(entries, start)
            if rows.shape[2] > 0:
                piece.part.put(at, rows, self._traffic)

    def scatter(self, slot: Tensor, entry: Tensor, position: Tensor | int | None = None) -> None:
        """Never called: what lies elsewhere is written once."""
        raise AssertionError

    def settle(self, position: Tensor) -> None:
        """Do nothing: entries stay as they are."""

    def entries(self, stop: int, position: Tensor) -> Tensor | Entries:
        """Never called: each part is attended to where it lies."""
        raise AssertionError

    def read(self, stop: int, position: Tensor | None = None) -> Tensor:
        """Return a copy of slots 0 .. stop on the device [B, G, stop, D]."""
        found = self._like.new_empty((*self._size[:2], stop, self._size[3]))
        for piece in self.pieces:
            rows, _ = piece.within(found, 0)
            if rows.shape[2] > 0:
                piece.part.get(rows, self._traffic)
        return found

    def unused_bytes(self) -> int:
        """Return 0: entries need what the closed form says."""
        return 0

    def grow(self, capacity: int, used: int) -> None:
        """Divide anew what is in use, and room for `capacity` slots."""
        rows = self.read(used)
        self._divide(torch.Size((*self._size[:2], capacity, self._size[3])))
        self.write(0, rows)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held in memory."""
        return tuple(tensor for piece in self.pieces for tensor in piece.part.tensors())

    def snapshot(self) -> object:
        """Return nothing: entries that come later leave the earlier ones alone."""

    def restore(self, snapshot: object) -> None:
        """Do nothing: slots behind the last entry may hold anything."""
