"""Rows that have left the slots of a layer, kept elsewhere, the first in the first out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.cache.codecs.base import Packing
from kvbench.cache.placement.areas import Area, InFile, InMemory
from kvbench.cache.placement.rooms import Tier
from kvbench.kernels.attend import EMPTY

BACK = 2**30  # added to the arrival of a row whose entry is back in its slots


@dataclass(frozen=True, kw_only=True)
class Form:
    """How large a ring is and what a row of it holds.

    Args:
        sets: kept sets Q, of all rows of the batch.
        heads: KV heads g of each set.
        rows: of each set.
        widths: numbers of a key and of a value.
        dtype: of keys and values as the model made them.
        packing: how they are written; None for as they are.
        beside: what stands beside each row: its dtype and its width.
    """

    sets: int
    heads: int
    rows: int
    widths: tuple[int, int]
    dtype: torch.dtype
    packing: Packing | None
    beside: Mapping[str, tuple[torch.dtype, int]]

    def written(self) -> Iterator[tuple[int, torch.dtype]]:
        """Yield the width and dtype of everything that is kept of a key, then of a value."""
        for width in self.widths:
            if self.packing is None:
                yield width, self.dtype
            else:
                yield from ((each.width, each.dtype) for each in self.packing.kept(width))

    @property
    def written_bytes(self) -> int:
        """Bytes of all keys and values."""
        return self.sets * self.heads * self.rows * sum(width * dtype.itemsize for width, dtype in self.written())

    @property
    def beside_bytes(self) -> int:
        """Bytes of what stands beside them: position, arrival and the rest."""
        beside = sum(width * dtype.itemsize for dtype, width in self.beside.values())
        return self.sets * self.rows * (2 * torch.int32.itemsize + beside)


@dataclass(frozen=True)
class Rows:
    """Some rows of every set, or of sets named apart.

    Args:
        keys: [Q, g, k, D].
        values: [Q, g, k, D_v].
        position: [Q, k]; -1 where there is none.
        beside: what stands beside them [Q, k, ...].
    """

    keys: Tensor
    values: Tensor
    position: Tensor
    beside: Mapping[str, Tensor]

    def tensors(self) -> tuple[Tensor, ...]:
        """Return all of it."""
        return (self.keys, self.values, self.position, *self.beside.values())

    def on_host(self, *, blocking: bool) -> Rows:
        """Return the same in the host's memory; where `blocking` is false, once the device has come so far."""
        if self.position.device.type == "cpu":
            return self
        host = [torch.empty(t.shape, dtype=t.dtype, pin_memory=t.device.type == "cuda") for t in self.tensors()]
        for target, source in zip(host, self.tensors(), strict=True):
            target.copy_(source, non_blocking=not blocking)
        keys, values, position, *beside = host
        return Rows(keys, values, position, dict(zip(self.beside, beside, strict=True)))


class Ring:
    """Keeps rows of every set; a new one takes the place of the oldest once all places are taken.

    The row of an entry that has come back keeps its place and its codes, so that the entry is not packed again when it
    leaves again; where nothing else is left, it gives way.

    Args:
        form: how large it is.
        folder: of the file that keys and values lie in, "" for the system's; None for memory.
        is_pinned: whether memory is page-locked.
    """

    def __init__(self, form: Form, folder: str | None, *, is_pinned: bool) -> None:
        self.form = form
        sets, heads, rows = form.sets, form.heads, form.rows

        def area(width: int, dtype: torch.dtype) -> Area:
            size = (sets, heads, rows, width)
            is_in_file = folder is not None and sets * heads * rows * width > 0
            return InFile(size, dtype, folder or "") if is_in_file else InMemory(size, dtype, is_pinned=is_pinned)

        self._written = [area(*each) for each in form.written()]
        self.position = torch.full((sets, rows), EMPTY, dtype=torch.int32)
        self.arrival = torch.full((sets, rows), -1, dtype=torch.int32)
        self.beside = {
            name: torch.zeros(sets, rows, width, dtype=dtype) for name, (dtype, width) in form.beside.items()
        }
        self._clock = 0  # columns that have arrived
        self.num_written = self.num_read = 0  # rows

    # -- what comes ---------------------------------------------------------------------------------------------

    def fill(self, first: int, rows: Rows) -> None:
        """Take a run of rows of every set into the places from `first` on, the oldest first."""
        count = rows.position.shape[1]
        for area, part in zip(self._written, self._pack(rows), strict=True):
            area.data[:, :, first : first + count] = part
        self.position[:, first : first + count] = rows.position
        self.arrival[:, first : first + count] = torch.arange(self._clock, self._clock + count, dtype=torch.int32)
        for name, row in self.beside.items():
            row[:, first : first + count] = rows.beside[name].view(row.shape[0], count, -1)
        self._clock += count
        self.num_written += count * self.form.sets

    def push(self, rows: Rows, *, catches: bool) -> list[Rows]:
        """Take rows of every set, one column after another.

        Args:
            rows: to take.
            catches: whether rows that fall off are wanted.

        Returns:
            What has fallen off, by column, as far as it is wanted.
        """
        packed, fallen = self._pack(rows), []
        for column in range(rows.position.shape[1]):
            place, falls = self._place(rows.position[:, column])
            if catches:
                fallen.append(self.read(torch.arange(len(place)), place))
                fallen[-1].position[~falls] = EMPTY
            self._put(place, rows, packed, column)
        return fallen

    def _place(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Return where rows at positions [Q] go, and whether another one falls off there."""
        own = (self.position == position[:, None]) & (position >= 0)[:, None]  # where it was when it came back
        place = torch.where(own.any(dim=1), own.int().argmax(dim=1), self.arrival.argmin(dim=1))
        sets = torch.arange(len(place))
        is_here = (self.position[sets, place] >= 0) & (self.arrival[sets, place] < BACK)
        return place, (position >= 0) & is_here

    def _put(self, place: Tensor, rows: Rows, packed: Sequence[Tensor], column: int) -> None:
        position = rows.position[:, column]
        there = (position >= 0).nonzero()[:, 0]
        is_new = self.position[there, place[there]] != position[there]
        new = there[is_new]
        for area, part in zip(self._written, packed, strict=True):
            area.data[new, :, place[new]] = part[new, :, column]
        self.num_written += len(new)
        self.position[there, place[there]] = position[there]
        self.arrival[there, place[there]] = self._clock
        for name, row in self.beside.items():
            row[there, place[there]] = rows.beside[name][there, column].view(len(there), row.shape[2])
        self._clock += 1

    # -- what goes back -----------------------------------------------------------------------------------------

    def here(self) -> Tensor:
        """Return the positions of rows whose entries are nowhere else [Q, rows], -1 for none."""
        return self.position.masked_fill(self.arrival >= BACK, EMPTY)

    def read(self, sets: Tensor, place: Tensor) -> Rows:
        """Return one row each of some sets [P], as numbers of the model's dtype."""
        self.num_read += len(sets)
        parts = [area.data[sets, :, place][:, :, None] for area in self._written]
        half = len(parts) // 2
        keys, values = (
            self._unpack(side, width)
            for side, width in zip((parts[:half], parts[half:]), self.form.widths, strict=True)
        )
        beside = {name: row[sets, place][:, None] for name, row in self.beside.items()}
        return Rows(keys, values, self.position[sets, place][:, None], beside)

    def lend(self, sets: Tensor, place: Tensor) -> None:
        """Note that the entries of these rows are back in their slots."""
        self.arrival[sets, place] += BACK

    # -- how rows are written -----------------------------------------------------------------------------------

    def _pack(self, rows: Rows) -> list[Tensor]:
        packing = self.form.packing
        if packing is None:
            return [rows.keys, rows.values]
        return [part for side in (rows.keys, rows.values) for part in packing.encode(side) if part is not None]

    def _unpack(self, parts: list[Tensor], width: int) -> Tensor:
        packing = self.form.packing
        if packing is None:
            return parts[0]
        wide = torch.promote_types(self.form.dtype, torch.float32)
        packed = packing.run([part.contiguous() for part in parts], width, "reference")
        numbers: Tensor = packed.dense(0, 1, wide)
        return numbers.to(self.form.dtype)

    # -- what others ask ----------------------------------------------------------------------------------------

    def _beside(self) -> tuple[Tensor, ...]:
        return (self.position, self.arrival, *self.beside.values())

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held in memory."""
        return (*(area.data for area in self._written if area.tier == "host"), *self._beside())

    def bytes_on(self, tier: Tier) -> int:
        """Return the bytes that lie in one tier."""
        mine = sum(area.data.nbytes for area in self._written if area.tier == tier)
        return mine + (sum(row.nbytes for row in self._beside()) if tier == "host" else 0)

    @property
    def row_bytes(self) -> int:
        """Bytes of the keys and values of one row."""
        rows = self.form.sets * self.form.rows
        return self.form.written_bytes // rows if rows > 0 else 0

    def close(self) -> None:
        """Let go of everything."""
        self._written, self.beside = [], {}
        self.position = self.arrival = self.position.new_empty(0)

    def snapshot(self) -> tuple[int, list[Tensor]]:
        """Return what `restore` needs to go back to this point: a copy of everything."""
        return self._clock, [t.clone() for t in self._everything()]

    def restore(self, snapshot: tuple[int, list[Tensor]]) -> None:
        """Go back to a snapshot, in the same storage."""
        self._clock, kept = snapshot
        for mine, old in zip(self._everything(), kept, strict=True):
            mine.copy_(old)

    def _everything(self) -> list[Tensor]:
        return [*(area.data for area in self._written), *self._beside()]


def rows_by_set(keys: Tensor, values: Tensor, position: Tensor, beside: Mapping[str, Tensor]) -> Rows:
    """Return entries [B, G, k, D] and what stands beside them [B, S, k, ...] as rows of Q = B * S sets."""
    sets = position.shape[1]
    keys, values = (t.unflatten(1, (sets, -1)).flatten(0, 1) for t in (keys, values))
    return Rows(keys, values, position.flatten(0, 1), {name: t.flatten(0, 1) for name, t in beside.items()})
