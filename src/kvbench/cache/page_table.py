"""Which pages hold the slots of a batch's rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvbench.kernels.attend import EMPTY


class PageTable:
    """Slot s of a row lies in the page that the row was given for slots s // size, at s % size.

    Source: Kwon et al. (PagedAttention), arXiv:2309.06180, sec. 4.

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
        self.free: list[int] = []  # the last one is taken next
        self.index = torch.empty((len(unused), 0), dtype=torch.int32, device=device)  # [B, n], EMPTY where none is
        self.num_pages = 0
        self.grow(capacity)

    @property
    def has_gaps(self) -> bool:
        """Whether some rows have no first page."""
        return self.first >= self.size

    @property
    def slots_taken(self) -> int:
        """Slots of all pages taken so far."""
        return self.size * (self.num_pages - len(self.free))

    def grow(self, capacity: int) -> None:
        """Have free pages for so many slots per row."""
        wider = self.index.new_full((len(self.unused), -(-capacity // self.size)), EMPTY)
        wider[:, : self.index.shape[1]] = self.index
        self.index, self.capacity = wider, capacity
        before, self.num_pages = self.num_pages, num_pages(self.size, capacity, self.unused)
        self.free = [*reversed(range(before, self.num_pages)), *self.free]

    def reserve(self, stop: int) -> None:
        """Take pages for slots before `stop` that have none."""
        needed = -(-stop // self.size)
        while self.taken < needed:
            last = (self.taken + 1) * self.size
            for row, unused in enumerate(self.unused):
                if unused < last:
                    self.index[row, self.taken].fill_(self.free.pop())  # a number: nothing crosses to the device
            self.taken += 1

    def give_back(self, taken: int) -> None:
        """Let go of all pages of a row but the first so many."""
        if taken < self.taken:
            pages: list[int] = self.index[:, taken : self.taken].flatten().tolist()
            self.free += [page for page in reversed(pages) if page != EMPTY]
            self.index[:, taken : self.taken] = EMPTY
            self.taken = taken


def num_pages(size: int, slots: int, unused: Sequence[int]) -> int:
    """Return how many pages hold so many slots of each row, whose first ones may be unused."""
    return sum(max(0, -(-slots // size) - empty // size) for empty in unused)
