"""Pages in levels: a few on the device, more in the host's memory, all of them there or on disk; fetched on a miss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from kvbench.cache.placement.files import File
from kvbench.cache.placement.rooms import Tier
from kvbench.cache.placement.tiers import Traffic

Policy = Literal["lru", "fifo", "lfu"]
FRAME_BYTES = torch.int32.itemsize + torch.int64.itemsize  # of what is known of a frame
PAGE_BYTES = torch.int32.itemsize  # of what is known of a page
HELD = torch.iinfo(torch.int64).max  # stamp of a frame that must not be given away


@dataclass(frozen=True, eq=False)
class Kind:
    """What pages there are.

    Args:
        like: an example of what they are written from.
        rows: R.
        count: pages per row there is room for at first.
        sides: (P, D) of each side.
    """

    like: Tensor
    rows: int
    count: int
    sides: Sequence[tuple[int, int]]


class Pages(Protocol):
    """Keeps pages, each of one row, which is a row of the batch and a KV head."""

    def put(self, first: int, pages: Sequence[Tensor]) -> None:
        """Keep pages first, first + 1 ... of every row, of each side [R, m, P, D]."""

    def read(self, row: Tensor, page: Tensor) -> list[Tensor]:
        """Return pages [n] of rows [n], of each side [n, P, D]."""

    def grow(self, count: int) -> None:
        """Make room for so many pages per row."""

    def forget(self, first: int) -> None:
        """Forget the pages from one on."""

    def bytes_on(self, tier: Tier) -> int:
        """Return the bytes that lie in one tier, here and below."""

    def close(self) -> None:
        """Let go of everything."""

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held in memory, here and below."""


class Memory:
    """All pages in the host's memory, page-locked where another device computes.

    Args:
        kind: what pages there are.
        traffic: of which what is sent down is counted.
    """

    def __init__(self, kind: Kind, traffic: Traffic) -> None:
        self._is_pinned = kind.like.device.type == "cuda"
        self._data = [
            torch.empty((kind.rows, kind.count, *side), dtype=kind.like.dtype, pin_memory=self._is_pinned)
            for side in kind.sides
        ]
        self._traffic = traffic

    def put(self, first: int, pages: Sequence[Tensor]) -> None:
        """Send pages down."""
        for mine, new in zip(self._data, pages, strict=True):
            mine[:, first : first + new.shape[1]].copy_(new)
            self._traffic.down += new.nbytes

    def read(self, row: Tensor, page: Tensor) -> list[Tensor]:
        """Return pages, gathered so that they cross in one piece."""
        at = row * self._data[0].shape[1] + page
        found = []
        for mine in self._data:
            gathered = torch.empty((len(at), *mine.shape[2:]), dtype=mine.dtype, pin_memory=self._is_pinned)
            found.append(torch.index_select(mine.flatten(0, 1), 0, at, out=gathered))
        return found

    def grow(self, count: int) -> None:
        """Move to more room."""
        for side, old in enumerate(self._data):
            size = (len(old), count, *old.shape[2:])
            self._data[side] = torch.empty(size, dtype=old.dtype, pin_memory=self._is_pinned)
            self._data[side][:, : old.shape[1]] = old

    def forget(self, first: int) -> None:
        """Do nothing: they are written again before they are read."""

    def bytes_on(self, tier: Tier) -> int:
        """Return the bytes of the room."""
        return sum(data.nbytes for data in self._data) if tier == "host" else 0

    def close(self) -> None:
        """Let go of the room."""
        self._data = []

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the room."""
        return tuple(self._data)


class Disk:
    """All pages in a file without a name, written behind the steps.

    Args:
        kind: what pages there are.
        traffic: of which what is written and read is counted.
        folder: where the file lies; "" for the system's folder of temporary files.
    """

    def __init__(self, kind: Kind, traffic: Traffic, folder: str) -> None:
        self._rows, self._sides, self._dtype, self._traffic = kind.rows, kind.sides, kind.like.dtype, traffic
        self._page_bytes = sum(size * width for size, width in kind.sides) * kind.like.itemsize
        advice = "Choose another strategy.evicted.folder, or strategy.evicted.host=1.0."
        self._file = File(kind.rows * kind.count * self._page_bytes, folder, advice)

    def put(self, first: int, pages: Sequence[Tensor]) -> None:
        """Write pages, those of all rows one after another."""
        rows, count = pages[0].shape[:2]
        whole = torch.cat([side.reshape(rows, count, -1) for side in pages], dim=2).transpose(0, 1).to("cpu")
        self._file.write_behind(first * rows * self._page_bytes, whole.contiguous())
        self._traffic.written += whole.nbytes

    def read(self, row: Tensor, page: Tensor) -> list[Tensor]:
        """Read pages one by one."""
        widths = [size * width for size, width in self._sides]
        whole = torch.empty((len(row), sum(widths)), dtype=self._dtype)
        for into, at in zip(whole, (page * self._rows + row).tolist(), strict=True):
            self._file.read(at * self._page_bytes, into)
        self._traffic.read += whole.nbytes
        parts = whole.split(widths, dim=1)
        return [part.unflatten(1, side) for part, side in zip(parts, self._sides, strict=True)]

    def grow(self, count: int) -> None:
        """Make the file longer."""
        self._file.grow(self._rows * count * self._page_bytes)

    def forget(self, first: int) -> None:
        """Do nothing: they are written again before they are read."""

    def bytes_on(self, tier: Tier) -> int:
        """Return the bytes of the file."""
        return self._file.num_bytes if tier == "disk" else 0

    def close(self) -> None:
        """Close the file once everything is written."""
        self._file.close()

    def tensors(self) -> tuple[Tensor, ...]:
        """Return nothing: what is read passes through."""
        return ()


class Level:
    """Some of the pages, in frames, above a level that has them all.

    Which page lies where is known on the host, so that a step waits once for what its query has chosen.

    Args:
        kind: what pages there are.
        frames: pages per row there is room for here.
        policy: which page leaves when another comes: that read longest ago, that which came first, or the one read
            least often while it was here.
        tier: where the frames lie.
        below: what has all pages.
        traffic: of which what is sent up and asked for is counted, where the frames lie on the device.
    """

    def __init__(
        self,
        kind: Kind,
        *,
        frames: int,
        policy: Policy,
        tier: Literal["host", "device"],
        below: Pages,
        traffic: Traffic,
    ) -> None:
        like, rows = kind.like, kind.rows
        device = like.device if tier == "device" else torch.device("cpu")
        is_pinned = tier == "host" and like.device.type == "cuda"
        self._data = [
            torch.empty((rows * frames, *side), dtype=like.dtype, device=device, pin_memory=is_pinned)
            for side in kind.sides
        ]
        self._inside = torch.full((rows, frames), -1, dtype=torch.int32)  # pages
        self._stamp = torch.full((rows, frames), -1, dtype=torch.int64)  # the lowest leaves first
        self._where = torch.full((rows, kind.count), -1, dtype=torch.int32)  # frames
        self._now, self._policy, self._tier, self._below, self._traffic = 0, policy, tier, below, traffic

    @property
    def frames(self) -> int:
        """Pages per row there is room for."""
        return self._inside.shape[1]

    def put(self, first: int, pages: Sequence[Tensor]) -> None:
        """Hand pages down, and keep the last of them."""
        self._below.put(first, pages)
        self._traffic.down += sum(side.nbytes for side in pages) if self._tier == "host" else 0
        rows, count = pages[0].shape[:2]
        mine = min(count, self.frames)
        row = torch.arange(rows).repeat_interleave(mine)
        page = torch.arange(first + count - mine, first + count).repeat(rows)
        free = torch.zeros(0, dtype=torch.int64)
        at = self._make_room(row, page, free, free).to(self._data[0].device)
        for data, new in zip(self._data, pages, strict=True):
            data.index_copy_(0, at, new[:, count - mine :].flatten(0, 1).to(data.device))

    def read(self, row: Tensor, page: Tensor) -> list[Tensor]:
        """Return pages, those that are not here fetched from below; rows in ascending order, each page once."""
        at = self._ensure(row, page).to(self._data[0].device)
        return [data.index_select(0, at) for data in self._data]

    def _ensure(self, row: Tensor, page: Tensor) -> Tensor:
        """Return the frames of pages [n] of rows [n]."""
        frame = self._where[row, page].long()
        is_here = frame >= 0
        row_here, frame_here = row[is_here], frame[is_here]
        if self._policy == "lfu":
            self._stamp[row_here, frame_here] += 1
        at = row * self.frames + frame
        if self._tier == "device":
            self._traffic.asked += len(row)
            self._traffic.hits += len(row_here)
            self._traffic.fetches += len(row_here) < len(row)
            self._traffic.waits += len(row_here) < len(row)
        if len(row_here) < len(row):
            missing = ~is_here
            come = self._below.read(row[missing], page[missing])
            at[missing] = self._make_room(row[missing], page[missing], row_here, frame_here)
            into = at[missing].to(self._data[0].device)
            for data, new in zip(self._data, come, strict=True):
                data.index_copy_(0, into, new.to(data.device, non_blocking=True))
                self._traffic.up += new.nbytes if self._tier == "device" else 0
        if self._policy == "lru":
            self._stamp.view(-1)[at] = self._later(len(at))
        return at

    def _later(self, count: int) -> Tensor:
        """Return so many stamps that are later than all others."""
        self._now += count
        return torch.arange(self._now - count, self._now)

    def _make_room(self, row: Tensor, page: Tensor, busy_row: Tensor, busy_frame: Tensor) -> Tensor:
        """Give frames to pages [n] of rows [n], taken from others but not from those that are busy."""
        leaves = self._stamp.clone()
        leaves[busy_row, busy_frame] = HELD
        order = leaves.argsort(dim=1, stable=True)
        frame = order[row, torch.arange(len(row)) - torch.searchsorted(row, row)]
        old = self._inside[row, frame]
        had = old >= 0
        self._where[row[had], old[had].long()] = -1
        self._inside[row, frame], self._where[row, page] = page.int(), frame.int()
        self._stamp[row, frame] = torch.ones_like(row) if self._policy == "lfu" else self._later(len(row))
        return row * self.frames + frame

    def grow(self, count: int) -> None:
        """Make room below."""
        self._below.grow(count)
        wider = self._where.new_full((len(self._where), count), -1)
        wider[:, : self._where.shape[1]] = self._where
        self._where = wider

    def forget(self, first: int) -> None:
        """Forget the pages from one on."""
        self._below.forget(first)
        self._where[:, first:] = -1
        late = self._inside >= first
        self._inside[late], self._stamp[late] = -1, -1

    def bytes_on(self, tier: Tier) -> int:
        """Return the bytes of the frames and of what is below; the tables lie with the host."""
        mine = sum(data.nbytes for data in self._data) if tier == self._tier else 0
        tables = sum(t.nbytes for t in self._tables) if tier == "host" else 0
        return mine + tables + self._below.bytes_on(tier)

    def close(self) -> None:
        """Let go of the frames, and of what is below."""
        self._data = []
        self._below.close()

    @property
    def _tables(self) -> tuple[Tensor, ...]:
        return self._inside, self._stamp, self._where

    def tensors(self) -> tuple[Tensor, ...]:
        """Return frames, tables, and what is below."""
        return (*self._data, *self._tables, *self._below.tensors())
