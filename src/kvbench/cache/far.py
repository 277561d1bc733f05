"""Entries that left a store, in pages that lie elsewhere: each step reads those its query may need most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvbench.cache.far_bytes import FarBytes, Levels
from kvbench.cache.low_rank import LowRankKeys
from kvbench.cache.placement.levels import Disk, Kind, Level, Memory
from kvbench.cache.placement.rooms import Tier
from kvbench.cache.placement.tiers import Traffic
from kvbench.cache.plan import LayerPlan, grown, score_dtype
from kvbench.cache.rotary import turn, turned_back
from kvbench.cache.slots import Slots
from kvbench.cache.store import take
from kvbench.cache.views import Leaving
from kvbench.kernels.attend import Tile
from kvbench.types import RunShape

BLOCK = 64  # pages of a prompt that exist twice at once while it is handed down


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
        self._bytes = found = FarBytes(plan, run, key.dtype, levels)
        batch, heads, shape = len(key), key.shape[1], plan.shape
        self._keys = LowRankKeys(plan, run, key, levels.rank) if levels.rank > 0 else None
        self._newest = [key.new_empty((batch, heads, self.paging.size, d)) for d in (shape.key_dim, shape.value_dim)]
        self._score = key.new_empty((batch, plan.score_heads, self.paging.size), dtype=score_dtype(key.dtype))  # of it
        self._first = [key.new_empty((batch, heads, levels.first, d)) for d in (shape.key_dim, shape.value_dim)]
        self._filled_first = 0
        self._rotary = plan.shape.rotary if plan.clamps else None
        self._position = torch.empty((batch, plan.score_heads, 0), dtype=torch.int32)  # of all entries, in order
        self._reserve(found.pages)
        self._filled = 0  # entries of the newest page
        self._count = 0  # whole pages
        self._index = self.paging.open_index(key, found.pages)
        kind = Kind(key, batch * heads, found.pages, found.sides)
        below: Memory | Level
        if found.is_on_disk:
            below = Level(
                kind,
                frames=found.host_frames,
                policy=levels.policy,
                tier="host",
                below=Disk(kind, self.traffic, levels.folder),
                traffic=self.traffic,
            )
        else:
            below = Memory(kind, self.traffic)
        self._pages = Level(
            kind, frames=found.frames, policy=levels.policy, tier="device", below=below, traffic=self.traffic
        )

    def _reserve(self, pages: int) -> None:
        size = (*self._position.shape[:2], self._first[0].shape[2] + (pages + 1) * self.paging.size)
        wider = self._position.new_empty(size)
        wider[:, :, : self._position.shape[2]] = self._position
        self._position, self._room = wider, pages

    # -- entries that leave -------------------------------------------------------------------------------------

    def take_prompt(self, leaving: Leaving) -> None:
        """Keep what leaves at the prompt's end, some pages at a time."""
        if self._keys is not None:
            self._keys.take(leaving)
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
        if (self._entries - self._filled_first + count) // size > self._room:
            self._grow((self._entries - self._filled_first + count) // size)
        self._position[:, :, self._entries : self._entries + count] = position.to(self._position.device)
        done = min(count, self._first[0].shape[2] - self._filled_first)
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
        self._index.put(self._count, keys, score)
        down = [keys, values] if self._keys is None else [values]
        self._pages.put(self._count, [side.flatten(0, 1) for side in down])
        self._count += keys.shape[2]

    def _grow(self, pages: int) -> None:
        pages = grown(pages)
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
            keys, values = self._read(self._index.choose(query, self._count, most).to("cpu"))
            found.append(Tile(keys, values, query=clamped))
        return found

    def _read(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of chosen pages [B, G, k] as entries [B, G, k P, D]."""
        batch, heads, most = chosen.shape
        row = torch.arange(batch * heads).repeat_interleave(most)
        *keys, values = (side.view(batch, heads, -1, side.shape[2]) for side in self._pages.read(row, chosen.flatten()))
        if self._keys is None:
            return keys[0], values
        first = self._filled_first + chosen[..., None] * self.paging.size
        slot = (first + torch.arange(self.paging.size)).flatten(2)
        position = self._position.expand(-1, heads, -1).gather(2, slot)
        return self._keys.at(position.to(values.device)), values

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
        keys = () if self._keys is None else self._keys.tensors()
        near = (*self._newest, self._score, *self._first)
        return (*near, self._position, *self._index.tensors(), *self._pages.tensors(), *keys)

    def bytes_on(self, tier: Tier) -> int:
        """Return the bytes that lie in one tier."""
        mine = self._position.nbytes if tier == "host" else 0
        return mine + self._pages.bytes_on(tier)

    def used_bytes(self, entries: Sequence[int]) -> int:
        """Return the bytes in use on the device beside the slots."""
        return len(entries) * self._bytes.used(self._count, self._filled_first + self._filled)

    def read_bytes(self, entries: Sequence[int], slot_bytes: int) -> int:
        """Return the bytes that a decode step reads on the device: slots, what tells pages apart, and those chosen."""
        beside = self._bytes.read(self._count, self._filled_first + self._filled)
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
