"""Keys or values whose slots lie in pages, taken as they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvbench.cache.codecs.base import Format, Kept, Packing, as_bytes
from kvbench.cache.codecs.dense import Dense
from kvbench.cache.codecs.packed import PackedFormat
from kvbench.cache.page_table import PageTable
from kvbench.kernels.packed import First, Form, Kernel, Packed, Rows


@dataclass(frozen=True)
class Numbers(Packing):
    """Entries are kept as the model made them.

    Args:
        dtype: of the model.
    """

    dtype: torch.dtype

    tokens = 1

    def kept(self, dim: int) -> tuple[Kept, ...]:
        """Return the numbers."""
        return (Kept(tokens=1, width=dim, dtype=self.dtype),)

    def encode(self, entries: Tensor) -> Sequence[Tensor]:
        """Return entries [B, G, T, D] as they are."""
        return (entries,)

    def run(self, kept: Sequence[Tensor], dim: int, kernel: Kernel) -> Packed:
        """Return entries as attention reads them."""
        levels, bits = str(self.dtype).removeprefix("torch."), 8 * self.dtype.itemsize
        form = Form(dim=dim, bits=bits, tokens=1, channels=dim, symmetric=True, levels=levels)  # type: ignore[arg-type]
        codes = kept[0].view(torch.uint8)
        return Packed(form, codes, codes.new_empty((*codes.shape[:3], 0), dtype=torch.float16), None, kernel)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return nothing."""
        return ()


def packing_of(how: Format, dtype: torch.dtype) -> Packing | None:
    """Return how each entry is packed, if each is packed alone; None otherwise."""
    if isinstance(how, Dense):
        return Numbers(dtype)
    if isinstance(how, PackedFormat) and how.rule.residual == 0 and how.quantiser.tokens == 1:
        return how.quantiser
    return None


def _kernel_of(how: Format, like: Tensor) -> Kernel | None:
    return how.rule.kernel_on(like.device, like.dtype) if isinstance(how, PackedFormat) else None


class PagedPayload:
    """Pages [n, G, size] of what is kept of entries, and the table that says whose they are.

    Args:
        packing: how an entry is packed.
        kernel: what reads entries.
        like: an example of entries [B, G, T, D].
        table: of the layer's keys and values.
    """

    def __init__(self, packing: Packing, kernel: Kernel, like: Tensor, table: PageTable) -> None:
        self.packing, self.kernel, self.table = packing, kernel, table
        self.dtype, self.dim = like.dtype, like.shape[3]
        self._allocate(like)

    @classmethod
    def of(cls, how: Format, like: Tensor, table: PageTable, kernel: Kernel) -> PagedPayload:
        """Return room for entries that are written so; codes are read by their codec's kernel."""
        packing = packing_of(how, like.dtype)
        assert packing is not None, "refused before"
        return cls(packing, _kernel_of(how, like) or kernel, like, table)

    def _allocate(self, like: Tensor) -> None:
        """Make room for the table's pages."""
        pages = self.table.num_pages
        sizes = [(pages, *each.rows(like.shape[1], self.table.size)) for each in self.packing.kept(self.dim)]
        dtypes = [each.dtype for each in self.packing.kept(self.dim)]
        self.kept = [like.new_zeros(size, dtype=dtype) for size, dtype in zip(sizes, dtypes, strict=True)]
        run = self.packing.run(self.kept, self.dim, self.kernel)
        assert isinstance(run, Packed)
        self.run = replace(run, table=self.table.index)

    @property
    def capacity(self) -> int:
        """Slots per row and head."""
        return self.table.capacity

    def write(self, start: int, entries: Tensor, position: Tensor | int | None = None) -> None:
        """Store entries [B, G, T, D] at slots start .. start + T; those of a page that is not needed go nowhere."""
        stop, size = start + entries.shape[2], self.table.size
        self.table.reserve(stop)
        for room, rows in self._encoded(entries):
            if stop == start + 1 and start >= self.table.first:
                room.select(2, start % size)[self.table.index[:, start // size]] = rows[:, :, 0]
                continue
            slot = torch.arange(start, stop, device=rows.device)
            page = self.table.index[:, slot // size]
            by_token, slot = rows.transpose(1, 2), (slot % size).expand_as(page)
            if self.table.has_gaps:
                is_there = page >= 0
                page, slot, by_token = page[is_there], slot[is_there], by_token[is_there]
            room[page, :, slot] = by_token

    def scatter(self, slot: Tensor, entry: Tensor, position: Tensor | int | None = None) -> None:
        """Store one entry [B, G, 1, D] per row and head at its own slot [B, 1 or G], or k of them at [B, 1 or G, k]."""
        self.table.reserve(self.capacity)
        at = (slot[:, :, None] if slot.dim() == 2 else slot).expand(entry.shape[:3])
        page = self.table.index.long().gather(1, (at // self.table.size).flatten(1)).view(at.shape)
        head = torch.arange(at.shape[1], device=at.device)[:, None]
        for room, rows in self._encoded(entry):
            room[page, head, at % self.table.size] = rows

    def _encoded(self, entries: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return what is kept of entries, each beside the room for it."""
        packed = (rows for rows in self.packing.encode(entries) if rows is not None)
        return [(as_bytes(room), as_bytes(rows)) for room, rows in zip(self.kept, packed, strict=True)]

    def settle(self, position: Tensor) -> None:
        """Do nothing: entries are packed when they are written."""

    def entries(self, stop: int, position: Tensor | None = None) -> Rows:
        """Return the entries of slots 0 .. stop, where they lie."""
        return Rows([First(self.run, stop)], self.dtype)

    def read(self, stop: int, position: Tensor | None = None) -> Tensor:
        """Return a copy of slots 0 .. stop as numbers [B, G, stop, D]; 0 where there is no page."""
        return self.run.dense(0, stop, torch.promote_types(self.dtype, torch.float32)).to(self.dtype)

    def unused_bytes(self) -> int:
        """Return 0: entries need what the closed form says."""
        return 0

    def grow(self, capacity: int, used: int) -> None:
        """Have room for `capacity` slots; pages keep their numbers."""
        if self.table.capacity < capacity:
            self.table.grow(capacity)
        before = self.kept
        self._allocate(before[0])
        for room, rows in zip(self.kept, before, strict=True):
            as_bytes(room)[: len(rows)] = as_bytes(rows)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held, the table included, which keys and values share."""
        return (*self.kept, self.table.index, *self.packing.tensors())

    def snapshot(self) -> int:
        """Return how many pages of a row are taken."""
        return self.table.taken

    def restore(self, snapshot: object) -> None:
        """Go back to a snapshot, in the same storage."""
        assert isinstance(snapshot, int)
        self.table.give_back(snapshot)
