"""Entries of which the first and the latest are as the model made them, whatever becomes of the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.cache.codecs.base import Appended, Format, Movable, Payload, Room
from kvbench.kernels.packed import Rows, Run


@dataclass(frozen=True, kw_only=True)
class EndsFormat:
    """One side of a layer; a token that is no longer one of the latest is written once, alone.

    Args:
        inner: how the others are written, each token alone.
        num_sink: first entries that are exact.
        window: latest ones; 0 for none, so that even the newest one is written before it is attended to.
    """

    inner: Format
    num_sink: int
    window: int

    @property
    def exact_rows(self) -> int:
        """Latest entries there is room for: those that stay, and the one that is about to leave."""
        return self.window + 1 if self.window > 0 else 0

    def written(self, entries: int) -> int:
        """Return how many of so many entries are written by the other format once the cache has settled."""
        return max(0, entries - self.num_sink - self.window)

    def empty(self, like: Tensor, capacity: int) -> EndsPayload:
        """Return room for `capacity` entries shaped as `like` [B, G, T, D]."""
        return EndsPayload(self, like, capacity)

    def allocated_bytes(self, heads: int, dim: int, capacity: int, dtype: torch.dtype) -> int:
        """Return the bytes of room for so many entries of so many heads, metadata included."""
        exact = min(capacity, self.num_sink) + self.exact_rows
        inner = self.inner.allocated_bytes(heads, dim, self.written(capacity), dtype)
        return inner + heads * exact * dim * dtype.itemsize

    def used_bytes(self, heads: int, dim: int, entries: int, dtype: torch.dtype) -> int:
        """Return the bytes of so many entries of so many heads, metadata included, once they have settled."""
        written = self.written(entries)
        inner = self.inner.used_bytes(heads, dim, written, dtype)
        return inner + heads * (entries - written) * dim * dtype.itemsize

    def rooms(self, batch: int, heads: int, dim: int, capacity: int, dtype: torch.dtype) -> list[Room]:
        """Return the storages of what is between the first and the latest entries."""
        assert isinstance(self.inner, Movable)
        return self.inner.rooms(batch, heads, dim, self.written(capacity), dtype)


class EndsPayload:
    """The first entries, a ring of the latest, where slot s is row s % `exact_rows`, and what is between them.

    Slots of the ring, and of what is between, are counted behind the first entries.

    Args:
        how: entries are written.
        like: an example of entries [B, G, T, D].
        capacity: slots per row and head.
    """

    def __init__(self, how: EndsFormat, like: Tensor, capacity: int) -> None:
        batch, heads, _, dim = like.shape
        self.how, self.capacity, self.dtype = how, capacity, like.dtype
        self.first = like.new_zeros((batch, heads, min(capacity, how.num_sink), dim))
        self.latest = like.new_zeros((batch, heads, how.exact_rows, dim))
        self.inner: Payload = how.inner.empty(like, how.written(capacity))
        self.filled = 0  # slots in use
        self.written = 0  # the first of them, which are not in the ring

    def write(self, start: int, entries: Tensor, position: Tensor | int | None = None) -> None:
        """Store entries [B, G, T, D] at slots start .. start + T."""
        exact = min(max(self.first.shape[2] - start, 0), entries.shape[2])
        if exact > 0:
            self.first.narrow(2, start, exact).copy_(entries[:, :, :exact])
        if exact == entries.shape[2]:
            return
        start, entries = start + exact - self.first.shape[2], entries[:, :, exact:]
        at = position[:, :, exact:] if isinstance(position, Tensor) else position
        rows, stop = self.latest.shape[2], start + entries.shape[2]
        if rows == 0:
            self.inner.write(start, entries, at)
            return
        self.filled = stop
        if self.written == start:  # a prompt: what leaves the window in the end is written at once
            leaving = max(0, stop - start - self.how.window)
            if leaving > 0:
                before = at[:, :, :leaving] if isinstance(at, Tensor) else at
                self.inner.write(start, entries[:, :, :leaving], before)
            self.written, start, entries = start + leaving, start + leaving, entries[:, :, leaving:]
        row = torch.arange(start, stop, device=entries.device) % rows
        self.latest.index_copy_(2, row, entries)

    def scatter(self, slot: Tensor, entry: Tensor, position: Tensor | int | None = None) -> None:
        """Store single entries where none is exact: what leaves a window is written in its order."""
        assert self.how.num_sink == self.how.window == 0, "single entries are overwritten among exact ones"
        self.inner.scatter(slot, entry, position)

    def settle(self, position: Tensor) -> None:
        """Write the oldest of the latest entries, if there is no room for another one."""
        rows = self.latest.shape[2]
        if rows == 0 or self.filled - self.written < rows:
            return
        slot, row = self.written + self.first.shape[2], self.written % rows
        self.inner.write(self.written, self.latest.narrow(2, row, 1), position.narrow(2, slot, 1))
        self.written += 1

    def entries(self, stop: int, position: Tensor) -> Rows:
        """Return what attention reads of slots 0 .. stop."""
        sinks, rows = min(stop, self.first.shape[2]), self.latest.shape[2]
        written = self.written if rows > 0 else stop - sinks
        parts: list[Tensor | Run] = [self.first.narrow(2, 0, sinks)] if sinks > 0 else []
        if written > 0:
            inner = self.inner.entries(written, position[:, :, sinks:])
            assert isinstance(inner, Tensor | Rows)
            parts += [inner] if isinstance(inner, Tensor) else inner.parts
        exact, first = stop - sinks - written, written % max(1, rows)
        if exact > 0:
            parts.append(self.latest.narrow(2, first, min(exact, rows - first)))
        if exact > rows - first:
            parts.append(self.latest.narrow(2, 0, exact - (rows - first)))
        return Rows(parts, self.dtype)

    def read(self, stop: int, position: Tensor | None = None) -> Tensor:
        """Return a copy of slots 0 .. stop as numbers [B, G, stop, D]."""
        assert position is not None
        wide = torch.promote_types(self.dtype, torch.float32)
        return self.entries(stop, position).numbers(0, stop, wide).to(self.dtype)

    def appended(self, stop: int) -> list[tuple[Tensor, int]]:
        """Return the storages of what is between, and how many rows of each are in use."""
        assert isinstance(self.inner, Appended)
        written = self.written if self.latest.shape[2] > 0 else max(0, stop - self.first.shape[2])
        return self.inner.appended(written)

    def moved(self) -> None:
        """Tell what entries are written as."""
        assert isinstance(self.inner, Appended)
        self.inner.moved()

    def unused_bytes(self) -> int:
        """Return the bytes that what is between did not need."""
        return self.inner.unused_bytes()

    def grow(self, capacity: int, used: int) -> None:
        """Move the first `used` slots to storage for `capacity`; the old storage is freed."""
        first, self.capacity = self.first, capacity
        self.first = first.new_zeros((*first.shape[:2], min(capacity, self.how.num_sink), first.shape[3]))
        self.first.narrow(2, 0, first.shape[2]).copy_(first)
        self.inner.grow(self.how.written(capacity), min(self.how.written(used), self.inner.capacity))

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held."""
        return (self.first, self.latest, *self.inner.tensors())

    def snapshot(self) -> tuple[int, int, Tensor, object]:
        """Return what `restore` needs to take back entries appended later."""
        return self.filled, self.written, self.latest.clone(), self.inner.snapshot()

    def restore(self, snapshot: object) -> None:
        """Go back to a snapshot, in the same storage."""
        latest: Tensor
        inner: object
        self.filled, self.written, latest, inner = snapshot  # type: ignore[misc]
        self.latest.copy_(latest)
        self.inner.restore(inner)
