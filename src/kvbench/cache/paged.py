"""Keys or values whose slots lie in pages, taken as they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kvbench.cache.codecs.alone import Numbers, kernel_of, packing_of
from kvbench.cache.codecs.base import Format, as_bytes
from kvbench.cache.page_table import PageTable
from kvbench.kernels.packed import First, Kernel, Packed, Rows
from kvbench.kernels.packed.reference import in_a_row


class PagedRoom:
    """Pages [n, G, size] of what is kept of entries, whoever they belong to.

    Args:
        how: how entries are written.
        like: an example of entries [B, G, T, D].
        pages: how many there are.
        size: entries of a page.
        kernel: what reads entries that are kept as the model made them; codes are read by their codec's.
    """

    def __init__(self, how: Format, like: Tensor, pages: int, size: int, kernel: Kernel) -> None:
        self.packing, self.kernel, self.size = packing_of(how, like.dtype), kernel_of(how, like) or kernel, size
        self.dtype, self.heads, self.dim = like.dtype, like.shape[1], like.shape[3]
        self._allocate(like, pages)

    def _allocate(self, like: Tensor, pages: int) -> None:
        """Make room for so many pages."""
        kept = self.packing.kept(self.dim)
        self.kept = [like.new_zeros((pages, *one.rows(self.heads, self.size)), dtype=one.dtype) for one in kept]
        self.run = self._run_of(self.kept)
        self._in_a_row = [room.view(1, 1, -1, room.shape[3]) for room in self.kept]  # each is packed alone
        self._run_in_a_row = self._run_of(self._in_a_row)

    def _run_of(self, kept: Sequence[Tensor]) -> Packed:
        run = self.packing.run(kept, self.dim, self.kernel)
        assert isinstance(run, Packed)
        return run

    def grow(self, pages: int) -> None:
        """Have so many pages; those there are keep their numbers."""
        before = self.kept
        self._allocate(before[0], pages)
        for room, rows in zip(self.kept, before, strict=True):
            as_bytes(room)[: len(rows)] = as_bytes(rows)

    def store(self, page: Tensor, slot: Tensor | int, entries: Tensor) -> None:
        """Store entries [1, G, N, D], each at a slot of a page [1 or G, N]."""
        head = torch.arange(self.heads, device=page.device)[:, None]
        row = (page.long() * self.heads + head) * self.size + slot
        entries = entries.reshape(1, 1, -1, self.dim)
        self.packing.write(self._in_a_row, self._run_in_a_row, row.reshape(1, 1, -1), entries)

    def put(self, page: Tensor, slot: int, entries: Tensor) -> None:
        """Store one entry per row [B, G, 1, D], all at the same slot of their pages [B]."""
        if isinstance(self.packing, Numbers):
            self.kept[0].select(2, slot).index_copy_(0, page.long(), entries.select(2, 0))
        else:
            self.store(page[None], slot, entries.transpose(0, 2))

    def clear(self, pages: Tensor) -> None:
        """Forget what lay in pages [n]: slots that hold nothing yet are read with a weight of 0."""
        for room in map(as_bytes, self.kept):
            room[pages] = 0

    def copy(self, source: int, target: int, slots: int) -> None:
        """Copy the first so many slots of a page to another."""
        for room in map(as_bytes, self.kept):
            room[target, :, :slots] = room[source, :, :slots]

    def through(self, index: Tensor) -> Packed:
        """Return the entries of rows whose pages are in a table [B, n], as attention reads them."""
        return replace(self.run, table=index)

    def read(self, pages: Tensor, length: int) -> Tensor:
        """Return a copy of the first so many entries of a sequence in pages [n], as numbers [1, G, length, D]."""
        rows = [in_a_row(room, pages[None]) for room in self.kept]
        if isinstance(self.packing, Numbers):
            return rows[0][:, :, :length]
        wide = torch.promote_types(self.dtype, torch.float32)
        return self._run_of(rows).dense(0, length, wide).to(self.dtype)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held."""
        return (*self.kept, *self.packing.tensors())


class PagedPayload:
    """Pages of entries, and the table that says whose they are.

    Args:
        how: how entries are written.
        like: an example of entries [B, G, T, D].
        table: of the layer's keys and values.
        kernel: as of PagedRoom.
    """

    def __init__(self, how: Format, like: Tensor, table: PageTable, kernel: Kernel) -> None:
        self.table = table
        self.room = PagedRoom(how, like, table.pool.num_pages, table.size, kernel)
        self.run = self.room.through(table.index)

    @property
    def capacity(self) -> int:
        """Slots per row and head."""
        return self.table.capacity

    def write(self, start: int, entries: Tensor, position: Tensor | int | None = None) -> None:
        """Store entries [B, G, T, D] at slots start .. start + T; those of a page that is not needed go nowhere."""
        tokens = entries.shape[2]
        self.table.reserve(start + tokens)
        if tokens == 1 and start >= self.table.first:
            self.room.put(self.table.index[:, start // self.table.size], start % self.table.size, entries)
            return
        slot = torch.arange(start, start + tokens, device=entries.device)
        page = self.table.pages_of(slot).flatten()
        slot, by_head = slot.repeat(len(entries)), entries.transpose(0, 1).flatten(1, 2)
        if start < self.table.first:
            is_there = page >= 0
            page, slot, by_head = page[is_there], slot[is_there], by_head[:, is_there]
        self.room.store(page[None], slot[None] % self.table.size, by_head[None])

    def scatter(self, slot: Tensor, entry: Tensor, position: Tensor | int | None = None) -> None:
        """Store one entry [B, G, 1, D] per row and head at its own slot [B, 1 or G], or k of them at [B, 1 or G, k]."""
        self.table.reserve(self.capacity)
        at = slot[:, :, None] if slot.dim() == 2 else slot
        page = self.table.pages_of(at.flatten(1)).view(at.shape)
        page, slot, by_head = (each.transpose(0, 1).flatten(1, 2) for each in (page, at % self.table.size, entry))
        self.room.store(page, slot, by_head[None])

    def settle(self, position: Tensor) -> None:
        """Do nothing: entries are packed when they are written."""

    def entries(self, stop: int, position: Tensor | None = None) -> Rows:
        """Return the entries of slots 0 .. stop, where they lie."""
        return Rows([First(self.run, stop)], self.room.dtype)

    def read(self, stop: int, position: Tensor | None = None) -> Tensor:
        """Return a copy of slots 0 .. stop as numbers [B, G, stop, D]; 0 where there is no page."""
        dtype = self.room.dtype
        return self.run.dense(0, stop, torch.promote_types(dtype, torch.float32)).to(dtype)

    def unused_bytes(self) -> int:
        """Return 0: entries need what the closed form says."""
        return 0

    def grow(self, capacity: int, used: int) -> None:
        """Have room for `capacity` slots; pages keep their numbers."""
        if self.table.capacity < capacity:
            self.table.grow(capacity)
        self.room.grow(self.table.pool.num_pages)
        self.run = self.room.through(self.table.index)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held, the table included, which keys and values share."""
        return (*self.room.tensors(), self.table.index)

    def snapshot(self) -> int:
        """Return how many pages of a row are taken."""
        return self.table.taken

    def restore(self, snapshot: object) -> None:
        """Go back to a snapshot, in the same storage."""
        assert isinstance(snapshot, int)
        self.table.give_back(snapshot)
