"""Entries that left a store, in pages that lie elsewhere: each step reads those its query may need most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvbench.cache.placement.levels import FRAME_BYTES, PAGE_BYTES, Disk, Level, Memory, Policy
from kvbench.cache.placement.rooms import Placed, Tier
from kvbench.cache.placement.tiers import Traffic
from kvbench.cache.plan import LayerPlan, grown, score_dtype
from kvbench.cache.rotary import turn, turned_back
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
        first: entries that leave first and stay on the device.
        at_hand: pages on the device, times those that a step reads.
        host: share of the pages that lie in the host's memory; all lie on disk where it is below 1.
        policy: which page makes room for another.
        folder: where files lie; "" for the system's folder of temporary files.
    """

    first: int
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
    pages = max(1, (tokens - min(kept, longest) - levels.first) // plan.paging.size)
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

    Where distances are clamped (`LayerPlan.clamps`), keys lie as they were before they were rotated, and are read by
    the query as it would be at the largest distance in the store.

    Args:
        plan: of these heads.
        run: how long these rows are, all of them the same.
        key: an example [B, G, T, D].
        levels: where pages lie.
    """

    def __init__(self, plan: LayerPlan, run: RunShape, key: Tensor, levels: Levels) -> None:
        assert plan.paging is not None
        self.plan, self.paging, self.traffic = plan, plan.paging, Traffic()
        self._sizes, self._most_first = sizes(plan, run, levels), levels.first
        found = self._sizes
        self._rotary = plan.shape.rotary if plan.clamps else None
        batch, heads, shape = len(key), key.shape[1], plan.shape
        sides = [(self.paging.size, shape.key_dim), (self.paging.size, shape.value_dim)]
        self._newest = [key.new_empty((batch, heads, *side)) for side in sides]
        self._score = key.new_empty((batch, plan.score_heads, self.paging.size), dtype=score_dtype(key.dtype))  # of it
        self._first = [key.new_empty((batch, heads, levels.first, width)) for _, width in sides]
        self._filled_first = 0
        self._position = torch.empty((batch, plan.score_heads, 0), dtype=torch.int32)  # of all entries, in order
        self._reserve(found.pages)
        self._filled = 0  # entries of the newest page
        self._count = 0  # whole pages
        self._index = self.paging.open_index(key, found.pages)
        rows, pages = batch * heads, found.pages
        below: Memory | Level
        if not found.is_on_disk:
            below = Memory(key, rows, pages, sides, self.traffic)
        else:
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
        size = (*self._position.shape[:2], self._most_first + (pages + 1) * self.paging.size)
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
            score = leaving.score.gather(2, part)
            self._add(take(leaving.keys, part), take(leaving.values, part), position, score)

    def take(self, slots: Slots, victims: Tensor) -> None:
        """Keep the entries of slots [B, S, k], in order of position."""
        position = slots.position.gather(2, victims)
        order = position.argsort(dim=2)
        victims = victims.gather(2, order)
        keys, values = (take(side.read(slots.filled), victims) for side in (slots.keys, slots.values))
        assert slots.score is not None
        self._add(keys, values, position.gather(2, order), slots.score.gather(2, victims))

    def _add(self, keys: Tensor, values: Tensor, position: Tensor, score: Tensor) -> None:
        """Keep entries [B, G, n, D] at position [B, S, n], whose score [B, S, n] will not change."""
        if self._rotary is not None:
            keys = turned_back(keys, position, self._rotary).to(keys.dtype)
        count, size = keys.shape[2], self.paging.size
        if (self._entries - self._filled_first + count) // size > self._sizes.pages:
            self._grow((self._entries - self._filled_first + count) // size)
        self._position[:, :, self._entries : self._entries + count] = position.to(self._position.device)
        done = min(count, self._most_first - self._filled_first)
        for mine, side in zip(self._first, (keys, values), strict=True):
            mine[:, :, self._filled_first : self._filled_first + done] = side[:, :, :done]
        self._filled_first += done
        while done < count:
            whole = (count - done) // size * size if self._filled == 0 else 0
            if whole > 0:
                run = slice(done, done + whole)
                self._close(*(side[:, :, run].unflatten(2, (-1, size)) for side in (keys, values, score)))
                done += whole
                continue
            step = min(size - self._filled, count - done)
            for mine, side in zip((*self._newest, self._score), (keys, values, score), strict=True):
                mine[:, :, self._filled : self._filled + step] = side[:, :, done : done + step]
            self._filled, done = self._filled + step, done + step
            if self._filled == size:
                self._close(*(mine[:, :, None] for mine in (*self._newest, self._score)))
                self._filled = 0

    @property
    def _entries(self) -> int:
        return self._filled_first + self._count * self.paging.size + self._filled

    def _close(self, keys: Tensor, values: Tensor, score: Tensor) -> None:
        """Hand whole pages [B, G, m, P, D] of keys and values down, whose scores are [B, S, m, P]."""
        pages = [keys, values]
        self._index.put(self._count, keys, score)
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
        """Return what is in slots, the first and newest that left, and the pages a query [B, H, 1, D] needs most."""
        found, clamped = slots.tiles(), None
        if self._rotary is not None:
            assert self.plan.budget is not None
            distance = self.plan.budget[0] - slots.position.amax(dim=(1, 2))
            query = clamped = turn(query, distance, self._rotary)
        for near, filled in ((self._first, self._filled_first), (self._newest, self._filled)):
            if filled > 0:
                keys, values = (side[:, :, :filled] for side in near)
                found.append(Tile(keys, values, query=clamped))
        most = self._read_pages
        if most > 0:
            chosen = self._index.choose(query, self._count, most).flatten(0, 1).to("cpu")
            row = torch.arange(len(chosen)).repeat_interleave(most)
            rows = self._newest[0].shape[:2]
            keys, values = (side.view(*rows, -1, side.shape[2]) for side in self._pages.read(row, chosen.flatten()))
            found.append(Tile(keys, values, query=clamped))
        return found

    @property
    def _read_pages(self) -> int:
        return min(self._count, *self.paging.most)

    def grow(self, capacity: int) -> None:
        """Do nothing: slots that grow hold what has not left."""

    def held(self, position: Tensor) -> Tensor:
        """Return the positions held, here and in slots."""
        return torch.cat([position, self._position[:, :, : self._entries].to(position.device)], dim=2)

    # -- what others ask ----------------------------------------------------------------------------------------

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held in memory, on the device and on the host."""
        return (
            *self._newest,
            *self._first,
            self._score,
            self._position,
            *self._index.tensors(),
            *self._pages.tensors(),
        )

    def bytes_on(self, tier: Tier) -> int:
        """Return the bytes that lie in one tier."""
        mine = self._position.nbytes if tier == "host" else 0
        return mine + self._pages.bytes_on(tier)

    def used_bytes(self, entries: Sequence[int]) -> int:
        """Return the bytes in use on the device beside the slots."""
        near = min(self._count, self._sizes.device) * self.paging.size + self._filled + self._filled_first
        return len(entries) * used_bytes(self.plan, self._count, near, self._newest[0].dtype)

    def read_bytes(self, entries: Sequence[int], slot_bytes: int) -> int:
        """Return the bytes that a decode step reads on the device: slots, what tells pages apart, and those chosen."""
        read = self._read_pages * self.paging.size + self._filled + self._filled_first
        beside = used_bytes(self.plan, self._count, read, self._newest[0].dtype)
        return sum(entries) * slot_bytes + len(entries) * beside

    def snapshot(self, filled: int) -> object:
        """Return what `restore` needs; of what is kept only the newest page is ever written anew."""
        newest = [side.clone() for side in (*self._newest, self._score)]
        return self._count, self._filled, self._filled_first, newest

    def restore(self, snapshot: object, filled: int) -> None:
        """Forget the pages that came since; what lies on the device stays there."""
        newest: list[Tensor]
        self._count, self._filled, self._filled_first, newest = snapshot  # type: ignore[misc]
        for mine, old in zip((*self._newest, self._score), newest, strict=True):
            mine.copy_(old)
        self._pages.forget(self._count)

    def close(self) -> None:
        """Let go of what lies elsewhere."""
        self._pages.close()


def entry_bytes(plan: LayerPlan, dtype: torch.dtype) -> int:
    """Return the bytes of an entry of one row, over all heads."""
    return plan.shape.kv_heads * (plan.shape.key_dim + plan.shape.value_dim) * dtype.itemsize


def used_bytes(plan: LayerPlan, pages: int, near: int, dtype: torch.dtype) -> int:
    """Return the bytes of a row on the device: what tells so many pages apart, and so many entries."""
    assert plan.paging is not None
    return plan.paging.index_bytes(plan.shape, dtype, pages) + near * entry_bytes(plan, dtype)


def placed(plan: LayerPlan, run: RunShape, dtype: torch.dtype, levels: Levels) -> Placed:
    """Return the bytes held where once the prompt is read."""
    assert plan.paging is not None
    found, size, rows = sizes(plan, run, levels), plan.paging.size, run.batch_size
    page, lines = size * entry_bytes(plan, dtype), rows * plan.shape.kv_heads
    tables = found.device * FRAME_BYTES + found.pages * PAGE_BYTES
    if found.is_on_disk:
        tables += found.host * FRAME_BYTES + found.pages * PAGE_BYTES
    position = rows * plan.score_heads * (levels.first + (found.pages + 1) * size) * torch.int32.itemsize
    score = plan.score_heads * size * score_dtype(dtype).itemsize
    near = (found.device + 1) * size + levels.first
    in_memory = found.host if found.is_on_disk else found.pages
    return Placed(
        device=rows * (used_bytes(plan, found.pages, near, dtype) + score),
        host=rows * in_memory * page + lines * tables + position,
        disk=rows * found.pages * page if found.is_on_disk else 0,
    )


def used(plan: LayerPlan, run: RunShape, dtype: torch.dtype, tokens_seen: int, levels: Levels) -> int:
    """Return the bytes in use on the device after so many columns."""
    assert plan.paging is not None
    total = 0
    for pad, held in zip(run.padding, plan.held(run, tokens_seen), strict=True):
        gone = max(0, tokens_seen - pad) - held if tokens_seen >= run.prompt_tokens else 0
        first = min(gone, levels.first)
        pages, newest = divmod(gone - first, plan.paging.size)
        at_hand = min(pages, sizes(plan, run, levels).device) * plan.paging.size
        total += used_bytes(plan, pages, at_hand + newest + first, dtype)
    return total
