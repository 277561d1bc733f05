"""Pages by number: how many hold each, and which of them hold the slots of a batch's rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from kvbench.kernels.attend import EMPTY


class PagePool:
    """Pages by number, and how many hold each; a page that nobody holds is free.

    Source: Kwon et al. (PagedAttention), arXiv:2309.06180, sec. 4.3.

    Args:
        pages: how many there are.
    """

    def __init__(self, pages: int) -> None:
        self.holders: list[int] = []
        self.free: list[int] = []  # the last one is taken next
        self.grow(pages)

    @property
    def num_pages(self) -> int:
        """Pages in all."""
        return len(self.holders)

    @property
    def taken(self) -> int:
        """Pages that somebody holds."""
        return self.num_pages - len(self.free)

    def grow(self, pages: int) -> None:
        """Have so many pages."""
        self.free = [*reversed(range(self.num_pages, pages)), *self.free]
        self.holders += [0] * (pages - self.num_pages)

    def take(self) -> int:
        """Return a free page, which one holds now."""
        page = self.free.pop()
        self.holders[page] = 1
        return page

    def hold(self, pages: Iterable[int]) -> None:
        """Have one more hold each of these pages."""
        for page in pages:
            assert self.holders[page] > 0, "a free page may be anybody's"
            self.holders[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Have one less hold each of these pages."""
        for page in pages:
            self.holders[page] -= 1
            assert self.holders[page] >= 0, "released by more than hold it"
            if self.holders[page] == 0:
                self.free.append(page)


class PageTable:
    """Slot s of a row lies in the page that the row was given for slots s // size, at s % size.

    Args:
        size: slots of a page.
        capacity: slots per row.
        unused: first slots of each row that nobody reads; a page with no others is not taken.
        device: of the table.
    """

    def __init__(self, size: int, capacity: int, unused: Sequence[int], device: torch.device) -> None:
        self.size, self.capacity, self.unused = size, 0, tuple(unused)
        self.first = max(unused)  # slot from which on all rows have pages
        self.taken = 0  # pages of a row for which one was taken wherever it is needed
        self.index = torch.empty((len(unused), 0), dtype=torch.int32, device=device)  # [B, n], EMPTY where none is
        self.pool = PagePool(0)
        self.grow(capacity)

    @property
    def slots_taken(self) -> int:
        """Slots of all pages taken so far."""
        return self.size * self.pool.taken

    def grow(self, capacity: int) -> None:
        """Have free pages for so many slots per row."""
        wider = self.index.new_full((len(self.unused), -(-capacity // self.size)), EMPTY)
        wider[:, : self.index.shape[1]] = self.index
        self.index, self.capacity = wider, capacity
        self.pool.grow(num_pages(self.size, capacity, self.unused))

    def reserve(self, stop: int) -> None:
        """Take pages for slots before `stop` that have none; those of a row are neighbours where the pool has such."""
        needed = -(-stop // self.size)
        if needed <= self.taken:
            return
        for row, unused in enumerate(self.unused):
            for column in range(max(self.taken, unused // self.size), needed):
                self.index[row, column].fill_(self.pool.take())  # a number: nothing crosses to the device
        self.taken = needed

    def give_back(self, taken: int) -> None:
        """Let go of all pages of a row but the first so many."""
        if taken < self.taken:
            pages: list[int] = self.index[:, taken : self.taken].flatten().tolist()
            self.pool.release(page for page in reversed(pages) if page != EMPTY)
            self.index[:, taken : self.taken] = EMPTY
            self.taken = taken

    def pages_of(self, slot: Tensor) -> Tensor:
        """Return the pages [B, n] that hold slots [n], or each row's own [B, n]; EMPTY where there is none."""
        column = slot // self.size
        return self.index[:, column] if column.dim() == 1 else self.index.gather(1, column)


def num_pages(size: int, slots: int, unused: Sequence[int]) -> int:
    """Return how many pages hold so many slots of each row, whose first ones may be unused."""
    return sum(max(0, -(-slots // size) - empty // size) for empty in unused)
