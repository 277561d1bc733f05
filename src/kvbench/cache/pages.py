"""Pages of entries, and the bounds by which a decode step chooses the few it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from kvbench.cache.plan import LayerPlan, score_dtype
from kvbench.cache.slots import Slots
from kvbench.kernels.attend import Tile
from kvbench.types import LayerShape, RunShape


@dataclass(frozen=True, kw_only=True)
class Paging:
    """How the entries of a layer are read while decoding.

    Args:
        size: entries of a page.
        most: pages read per row.
    """

    reads_slots: ClassVar[bool] = True  # and not only pages of what has left

    size: int
    most: tuple[int, ...]

    def of_rows(self, rows: slice) -> Paging:
        """Return the same for some of the rows."""
        return replace(self, most=self.most[rows])

    def pages(self, entries: int) -> int:
        """Return the pages of so many entries."""
        return -(-entries // self.size)

    def bytes(self, shape: LayerShape, dtype: torch.dtype, entries: Sequence[int]) -> int:
        """Return the bytes of the bounds of rows with so many entries."""
        return self.index_bytes(shape, dtype, sum(map(self.pages, entries)))

    def open_index(self, key: Tensor, count: int) -> Index:
        """Return what tells so many pages apart, yet empty; `key` is an example [B, G, T, D]."""
        return Bounds(key, count)

    def index_bytes(self, shape: LayerShape, dtype: torch.dtype, pages: int) -> int:
        """Return the bytes of what tells so many pages of one row apart."""
        return pages * shape.kv_heads * 2 * shape.key_dim * dtype.itemsize

    def allocated_bytes(self, shape: LayerShape, dtype: torch.dtype, capacity: int) -> int:
        """Return the bytes of everything that is kept for so many slots per row."""
        numbers = len(self.most) * torch.int64.itemsize if len(set(self.most)) > 1 else 0
        return self.bytes(shape, dtype, [capacity] * len(self.most)) + numbers


class Index(Protocol):
    """What tells which whole pages a query needs most."""

    def put(self, first: int, keys: Tensor, score: Tensor) -> None:
        """Take in pages first, first + 1 ... by their keys [B, G, m, P, D] and scores [B, 1 or G, m, P]."""

    def choose(self, query: Tensor, among: int, most: int) -> Tensor:
        """Return which of the first pages a query [B, H, 1, D] needs most [B, G, most]."""

    def grow(self, count: int) -> None:
        """Move to room for more pages."""

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held."""


class Rows:
    """A row of numbers per page and head.

    Args:
        key: an example [B, G, T, D].
        count: pages there is room for.
        width: of a row.
    """

    def __init__(self, key: Tensor, count: int, width: int) -> None:
        self._rows = key.new_empty((*key.shape[:2], count, width))

    def grow(self, count: int) -> None:
        """Move to room for more pages."""
        wider = self._rows.new_empty((*self._rows.shape[:2], count, self._rows.shape[3]))
        wider[:, :, : self._rows.shape[2]] = self._rows
        self._rows = wider

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held."""
        return (self._rows,)


class Bounds(Rows):
    """Pages by bounds of what their keys can make of a query.

    Args:
        key: an example [B, G, T, D].
        count: pages there is room for.
    """

    def __init__(self, key: Tensor, count: int) -> None:
        super().__init__(key, count, 2 * key.shape[3])

    def put(self, first: int, keys: Tensor, score: Tensor) -> None:
        """Take in pages by their keys [B, G, m, P, D]."""
        self._rows[:, :, first : first + keys.shape[2]] = torch.cat([keys.amax(dim=3), -keys.amin(dim=3)], dim=-1)

    def choose(self, query: Tensor, among: int, most: int) -> Tensor:
        """Return which of the first pages a query [B, H, 1, D] may need most [B, G, most], each head its own."""
        return upper_bounds(query, self._rows[:, :, :among]).topk(most, dim=-1, sorted=False).indices


class Pages:
    """For each page and head the largest number of every dimension of its keys, and of the keys' negatives.

    A product with the positive and the negative part of a query then bounds what any key of the page can make of it.
    The pages of a row begin with its first token, whatever padding lies before it.

    Args:
        plan: of these heads.
        run: how long the rows are.
        padding: columns of padding per row [B, 1, 1], or None where there is none.
        keys: an example [B, G, T, D].
    """

    def __init__(self, plan: LayerPlan, run: RunShape, padding: Tensor | None, keys: Tensor) -> None:
        assert plan.paging is not None
        paging = plan.paging
        self.paging, self.shape, self.run, self.padding = paging, plan.shape, run, padding
        batch, heads, _, width = keys.shape
        size = (batch, heads, paging.pages(plan.capacity(run)), 2 * width)
        self.bounds = keys.new_full(size, -torch.inf)  # of pages without entries
        self._rows_differ = len(set(paging.most)) > 1
        self._most: Tensor | None = None
        if self._rows_differ:
            self._most = torch.tensor(paging.most, device=keys.device)[:, None, None]

    def start(self, slots: Slots) -> None:
        """Take the bounds of what the prompt left."""
        keys, size = slots.keys.read(slots.filled), self.paging.size
        width = keys.shape[3]
        for row in range(len(keys)):
            mine = keys[row : row + 1, :, 0 if self.padding is None else self.run.padding[row] :]
            whole = mine.shape[2] // size
            parts = [mine[:, :, : whole * size].unflatten(2, (whole, size))] if whole > 0 else []
            if mine.shape[2] > whole * size:
                parts.append(mine[:, :, None, whole * size :])
            page = 0
            for part in parts:
                here = self.bounds[row : row + 1, :, page : page + part.shape[2]]
                here[..., :width] = part.amax(dim=3)
                here[..., width:] = -part.amin(dim=3)
                page += part.shape[2]

    def tiles(self, query: Tensor, slots: Slots) -> list[Tile]:
        """Return what a query [B, H, 1, D] reads once the newest entry is in its slot: all where that is little."""
        filled, size = slots.filled, self.paging.size
        keys, values = slots.keys.read(filled), slots.values.read(filled)
        self._note(keys[:, :, -1:], filled - 1)
        count = self.paging.pages(filled)
        if count <= min(self.paging.most):
            return slots.tiles()
        chosen = self._choose(query, filled - 1, count)
        within = torch.arange(size, device=keys.device)
        slot = (chosen[..., None] * size + within).flatten(2)
        if self.padding is not None:
            slot = slot + self.padding
        visible = slot < filled
        if self._most is not None:
            rank = torch.arange(chosen.shape[2], device=keys.device).repeat_interleave(size)
            visible = visible & (rank < self._most)
        at = slot.clamp(max=filled - 1)[..., None]
        return [
            Tile(
                keys.gather(2, at.expand(-1, -1, -1, keys.shape[3])),
                values.gather(2, at.expand(-1, -1, -1, values.shape[3])),
                visible=visible,
            )
        ]

    def _note(self, key: Tensor, slot: int) -> None:
        """Widen the bounds of the newest page by the newest key."""
        both = torch.cat([key, -key], dim=-1)
        if self.padding is None:
            page = self.bounds.narrow(2, slot // self.paging.size, 1)
            torch.maximum(page, both, out=page)
        else:
            at = self._newest(slot)
            self.bounds.scatter_(2, at, torch.maximum(self.bounds.gather(2, at), both))

    def _newest(self, slot: int) -> Tensor:
        """Return the page of a slot as an index of the bounds [B, G, 1, 2 D]."""
        batch, heads, _, width = self.bounds.shape
        size, device = self.paging.size, self.bounds.device
        if self.padding is None:
            page = torch.full((batch, 1, 1), slot // size, device=device)
        else:
            page = ((slot - self.padding) // size).long()
        return page[..., None].expand(-1, heads, -1, width)

    def _choose(self, query: Tensor, slot: int, count: int) -> Tensor:
        """Return the pages to read [B, G, k], the best one first."""
        score = upper_bounds(query, self.bounds.narrow(2, 0, count))
        page = torch.arange(count, device=query.device)
        newest = (slot if self.padding is None else slot - self.padding) // self.paging.size
        score = score.masked_fill(page == newest, float("inf")).masked_fill(page > newest, -float("inf"))
        return score.topk(min(max(self.paging.most), count), dim=-1, sorted=self._rows_differ).indices

    def grow(self, capacity: int) -> None:
        """Move to bounds for more slots."""
        batch, heads, _, width = self.bounds.shape
        wider = self.bounds.new_full((batch, heads, self.paging.pages(capacity), width), -torch.inf)
        wider.narrow(2, 0, self.bounds.shape[2]).copy_(self.bounds)
        self.bounds = wider

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held."""
        return (self.bounds,) if self._most is None else (self.bounds, self._most)

    def held(self, position: Tensor) -> Tensor:
        """Return the positions held, given those in slots: the same."""
        return position

    def used_bytes(self, entries: Sequence[int]) -> int:
        """Return the bytes of the bounds of so many entries per row."""
        return self.paging.bytes(self.shape, self.bounds.dtype, entries)

    def read_bytes(self, entries: Sequence[int], slot_bytes: int) -> int:
        """Return the bytes a decode step reads: all bounds and the chosen pages, the newest one as far as it goes."""
        pages = [self.paging.pages(count) for count in entries]
        fewest = min(self.paging.most)
        if max(pages) <= fewest:
            return sum(entries) * slot_bytes
        unread = [max(0, count - most) * self.paging.size for count, most in zip(pages, self.paging.most, strict=True)]
        return (sum(entries) - sum(unread)) * slot_bytes + self.used_bytes(entries)

    def snapshot(self, filled: int) -> Tensor:
        """Return the bounds of the newest page, the only ones of the past that later entries change."""
        return self.bounds.gather(2, self._newest(filled - 1))

    def restore(self, snapshot: object, filled: int) -> None:
        """Put the bounds of the newest page back, and empty later ones."""
        newest: Tensor = snapshot  # type: ignore[assignment]
        at = self._newest(filled - 1)
        self.bounds.scatter_(2, at, newest)
        page = torch.arange(self.bounds.shape[2], device=self.bounds.device)[:, None]
        self.bounds.masked_fill_(page > at, -torch.inf)


def upper_bounds(query: Tensor, bounds: Tensor) -> Tensor:
    """Return the most that any key of a page can make of the queries of a KV head, summed over them [B, G, P].

    Args:
        query: [B, H, 1, D].
        bounds: largest numbers of the keys and of their negatives [B, G, P, 2 D].
    """
    wide, groups = score_dtype(query.dtype), bounds.shape[1]
    rows = query.to(wide).unflatten(1, (groups, -1))  # the maximum of two products picks one sign per dimension
    parts = torch.cat([rows.clamp(min=0), (-rows).clamp(min=0)], dim=-1).sum(dim=2)
    return torch.matmul(bounds.to(wide), parts.transpose(-1, -2))[..., 0]
