"""Entries that left a store, in pages that lie elsewhere: each step reads those its query may need most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvbench.cache.pages import Bounds
from kvbench.cache.placement.levels import FRAME_BYTES, PAGE_BYTES, Disk, Level, Memory, Policy
from kvbench.cache.placement.rooms import Placed, Tier
from kvbench.cache.placement.tiers import Traffic
from kvbench.cache.plan import LayerPlan, grown
from kvbench.cache.slots import Slots
from kvbench.cache.store import take
from kvbench.cache.views import Leaving
from kvbench.kernels.attend import Tile
from kvbench.types import RunShape

BLOCK = 64  # pages of a prompt that exist twice at once while it is handed down


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Where pages lie.

    Args:
        at_hand: pages on the device, times those that a step reads.
        host: share of the pages that lie in the host's memory; all lie on disk where it is below 1.
        policy: which page makes room for another.
        folder: where files lie; "" for the system's folder of temporary files.
    """

    at_hand: float
    host: float
    policy: Policy
    folder: str


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many pages of one layer lie where, per row and KV head.

    Args:
        pages: there is room for.
        device: on the device at once.
        host: in the host's memory at once.
        is_on_disk: whether all lie on disk.
    """

    pages: int
    device: int
    host: int
    is_on_disk: bool


def sizes(plan: LayerPlan, run: RunShape, levels: Levels) -> Sizes:
    """Return how many pages lie where, once the prompt of so many tokens is read and others are to follow."""
    assert plan.paging is not None
    assert plan.budget is not None
    longest, kept = max(run.prompt_lengths), min(plan.budget)
    tokens = grown(longest) if run.new_tokens is None else longest + run.new_tokens
    pages = max(1, (tokens - min(kept, longest)) // plan.paging.size)
    most = min(plan.paging.most)
    is_on_disk = levels.host < 1
    return Sizes(
        pages=pages,
        device=min(pages, max(most, round(most * levels.at_hand))),
        host=min(pages, max(most, round(pages * levels.host))),
        is_on_disk=is_on_disk,
    )


class Far:
    """Keeps what leaves a store in pages, the newest of them on the device until it is full.

    Args:
        plan: of these heads.
        run: how long these rows are, all of them the same.
        key: an example [B, G, T, D].
        levels: where pages lie.
    """

    def __init__(self, plan: LayerPlan, run: RunShape, key: Tensor, levels: Levels) -> None:
        assert plan.paging is not None
        self.plan, self.paging, self.traffic = plan, plan.paging, Traffic()
        self._sizes = found = sizes(plan, run, levels)
        batch, heads, shape = len(key), key.shape[1], plan.shape
        sides = [(self.paging.size, shape.key_dim), (self.paging.size, shape.value_dim)]
        self._newest = [key.new_empty((batch, heads, *side)) for side in sides]
        self._position = torch.empty((batch, plan.score_heads, 0), dtype=torch.int32)  # of all entries, in order
        self._reserve(found.pages)
        self._filled = 0  # entries of the newest page
        self._count = 0  # whole pages
        self._index = Bounds(key, found.pages)
        rows, pages = batch * heads, found.pages
        below: Memory | Disk | Level = Memory(key, rows, pages, sides, self.traffic)
        if found.is_on_disk:
            below = Level(
                key,
                rows,
                pages,
                sides,
                frames=found.host,
                policy=levels.policy,
                tier="host",
                below=Disk(key, rows, pages, sides, self.traffic, levels.folder),
                traffic=self.traffic,
            )
        self._pages = Level(
            key,
            rows,
            pages,
            sides,
            frames=found.device,
            policy=levels.policy,
            tier="device",
            below=below,
            traffic=self.traffic,
        )

    def _reserve(self, pages: int) -> None:
        size = (*self._position.shape[:2], (pages + 1) * self.paging.size)
        wider = self._position.new_empty(size)
        wider[:, :, : self._position.shape[2]] = self._position
        self._position = wider

    # -- entries that leave -------------------------------------------------------------------------------------

    def take_prompt(self, leaving: Leaving) -> None:
        """Keep what leaves at the prompt's end, some pages at a time."""
        gone = leaving.gone()
        index = gone.nonzero()[:, 2].view(*gone.shape[:2], -1)
        for part in index.split(BLOCK * self.paging.size, dim=2):
            position = leaving.position.expand(-1, index.shape[1], -1).gather(2, part)
            self._add(take(leaving.keys, part), take(leaving.values, part), position)

    def take(self, slots: Slots, victims: Tensor) -> None:
        """Keep the entries of slots [B, S, k], in order of position."""
        position = slots.position.gather(2, victims)
        order = position.argsort(dim=2)
        victims = victims.gather(2, order)
        keys, values = (take(side.read(slots.filled), victims) for side in (slots.keys, slots.values))
        self._add(keys, values, position.gather(2, order))

    def _add(self, keys: Tensor, values: Tensor, position: Tensor) -> None:
        """Keep entries [B, G, n, D] at position [B, S, n]."""
        first, count, size = self._count * self.paging.size + self._filled, keys.shape[2], self.paging.size
        if (first + count) // size > self._sizes.pages:
            self._grow((first + count) // size)
        self._position[:, :, first : first + count] = position.to(self._position.device)
        done = 0
        while done < count:
            whole = (count - done) // size * size if self._filled == 0 else 0
            if whole > 0:
                self._close([side[:, :, done : done + whole].unflatten(2, (-1, size)) for side in (keys, values)])
                done += whole
                continue
            step = min(size - self._filled, count - done)
            for mine, side in zip(self._newest, (keys, values), strict=True):
                mine[:, :, self._filled : self._filled + step] = side[:, :, done : done + step]
            self._filled, done = self._filled + step, done + step
            if self._filled == size:
                self._close([mine[:, :, None] for mine in self._newest])
                self._filled = 0

    def _close(self, pages: list[Tensor]) -> None:
        """Hand whole pages [B, G, m, P, D] of keys and values down."""
        self._index.put(self._count, pages[0])
        self._pages.put(self._count, [side.flatten(0, 1) for side in pages])
        self._count += pages[0].shape[2]

    def _grow(self, pages: int) -> None:
        pages = grown(pages)
        self._sizes = replace(self._sizes, pages=pages)
        self._reserve(pages)
        self._index.grow(pages)
        self._pages.grow(pages)

    # -- reading ------------------------------------------------------------------------------------------------

    def start(self, slots: Slots) -> None:
        """Do nothing: what left has been kept, and what stays is read whole."""

    def tiles(self, query: Tensor, slots: Slots) -> list[Tile]:
        """Return what is in slots, the newest of what left, and the pages a query [B, H, 1, D] needs most."""
        found = slots.tiles()
        if self._filled > 0:
            keys, values = (side[:, :, : self._filled] for side in self._newest)
            found.append(Tile(keys, values))
        most = self._read_pages
        if most > 0:
            chosen = self._index.choose(query, self._count, most).flatten(0, 1).to("cpu")
            row = torch.arange(len(chosen)).repeat_interleave(most)
            rows = self._newest[0].shape[:2]
            keys, values = (side.view(*rows, -1, side.shape[2]) for side in self._pages.read(row, chosen.flatten()))
            found.append(Tile(keys, values))
        return found

    @property
    def _read_pages(self) -> int:
        return min(self._count, *self.paging.most)

    def grow(self, capacity: int) -> None:
        """Do nothing: slots that grow hold what has not left."""

    def held(self, position: Tensor) -> Tensor:
        """Return the positions held, here and in slots."""
        entries = self._count * self.paging.size + self._filled
        return torch.cat([position, self._position[:, :, :entries].to(position.device)], dim=2)

    # -- what others ask ----------------------------------------------------------------------------------------

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held in memory, on the device and on the host."""
        return (*self._newest, self._position, *self._index.tensors(), *self._pages.tensors())

    def bytes_on(self, tier: Tier) -> int:
        """Return the bytes that lie in one tier."""
        mine = self._position.nbytes if tier == "host" else 0
        return mine + self._pages.bytes_on(tier)

    def used_bytes(self, entries: Sequence[int]) -> int:
        """Return the bytes in use on the device beside the slots."""
        at_hand = min(self._count, self._sizes.device)
        return len(entries) * used_bytes(self.plan, self._count, at_hand, self._filled, self._newest[0].dtype)

    def read_bytes(self, entries: Sequence[int], slot_bytes: int) -> int:
        """Return the bytes that a decode step reads on the device: slots, what tells pages apart, and those chosen."""
        dtype = self._newest[0].dtype
        return sum(entries) * slot_bytes + len(entries) * used_bytes(
            self.plan, self._count, self._read_pages, self._filled, dtype
        )

    def snapshot(self, filled: int) -> object:
        """Return what `restore` needs; pages that are whole never change."""
        return self._count, self._filled, [side.clone() for side in self._newest]

    def restore(self, snapshot: object, filled: int) -> None:
        """Forget the pages that came since; what lies on the device stays there."""
        newest: list[Tensor]
        self._count, self._filled, newest = snapshot  # type: ignore[misc]
        for mine, old in zip(self._newest, newest, strict=True):
            mine.copy_(old)
        self._pages.forget(self._count)


def entry_bytes(plan: LayerPlan, dtype: torch.dtype) -> int:
    """Return the bytes of an entry of one row, over all heads."""
    return plan.shape.kv_heads * (plan.shape.key_dim + plan.shape.value_dim) * dtype.itemsize


def used_bytes(plan: LayerPlan, pages: int, at_hand: int, newest: int, dtype: torch.dtype) -> int:
    """Return the bytes of a row on the device: what tells pages apart, those at hand, the newest one's entries."""
    assert plan.paging is not None
    entries = at_hand * plan.paging.size + newest
    return plan.paging.index_bytes(plan.shape, dtype, pages) + entries * entry_bytes(plan, dtype)


def placed(plan: LayerPlan, run: RunShape, dtype: torch.dtype, levels: Levels) -> Placed:
    """Return the bytes held where once the prompt is read."""
    assert plan.paging is not None
    found, size, rows = sizes(plan, run, levels), plan.paging.size, run.batch_size
    page, lines = size * entry_bytes(plan, dtype), rows * plan.shape.kv_heads
    tables = found.device * FRAME_BYTES + found.pages * PAGE_BYTES
    if found.is_on_disk:
        tables += found.host * FRAME_BYTES + found.pages * PAGE_BYTES
    position = rows * plan.score_heads * (found.pages + 1) * size * torch.int32.itemsize
    in_memory = found.host if found.is_on_disk else found.pages
    return Placed(
        device=rows * used_bytes(plan, found.pages, found.device, size, dtype),
        host=rows * in_memory * page + lines * tables + position,
        disk=rows * found.pages * page if found.is_on_disk else 0,
    )


def used(plan: LayerPlan, run: RunShape, dtype: torch.dtype, tokens_seen: int, levels: Levels) -> int:
    """Return the bytes in use on the device after so many columns."""
    assert plan.paging is not None
    total = 0
    for pad, held in zip(run.padding, plan.held(run, tokens_seen), strict=True):
        gone = max(0, tokens_seen - pad) - held if tokens_seen >= run.prompt_tokens else 0
        pages, newest = divmod(gone, plan.paging.size)
        total += used_bytes(plan, pages, min(pages, sizes(plan, run, levels).device), newest, dtype)
    return total
