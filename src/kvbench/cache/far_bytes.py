"""How many pages of what has left lie where, and the bytes of that."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from kvbench.cache import low_rank
from kvbench.cache.pages import Paging
from kvbench.cache.placement.levels import FRAME_BYTES, PAGE_BYTES, Policy
from kvbench.cache.placement.rooms import Placed
from kvbench.cache.plan import LayerPlan, grown, score_dtype
from kvbench.types import RunShape


@dataclass(frozen=True, kw_only=True)
class Levels:
    """Where pages lie.

    Args:
        first: entries that leave first and stay on the device.
        at_hand: pages on the device, times those that a step reads.
        host: share of the pages that lie in the host's memory; all lie on disk where it is below 1.
        policy: which page makes room for another.
        folder: where files lie; "" for the system's folder of temporary files.
        rank: coordinates by which the keys of a token stay on the device; 0 where pages have keys and values.
    """

    first: int
    at_hand: float
    host: float
    policy: Policy
    folder: str
    rank: int


@dataclass(frozen=True)
class FarBytes:
    """How many pages of one layer lie where, per row and KV head, and what that comes to.

    Args:
        plan: of these heads.
        run: how long these rows are.
        dtype: of keys and values.
        levels: where pages lie.
    """

    plan: LayerPlan
    run: RunShape
    dtype: torch.dtype
    levels: Levels

    @cached_property
    def paging(self) -> Paging:
        """How what has left is read."""
        assert self.plan.paging is not None
        return self.plan.paging

    @cached_property
    def pages(self) -> int:
        """Pages there is room for once the prompt is read: of all that leaves, as far as that is known."""
        assert self.plan.budget is not None
        longest, new = max(self.run.prompt_lengths), self.run.new_tokens
        tokens = longest
        if self.plan.evicts:
            tokens = grown(longest) if new is None else longest + new
        return max(1, (tokens - min(*self.plan.budget, longest) - self.levels.first) // self.paging.size)

    @cached_property
    def frames(self) -> int:
        """Pages on the device at once."""
        most = min(self.paging.most)
        return min(self.pages, max(most, round(most * self.levels.at_hand)))

    @cached_property
    def host_frames(self) -> int:
        """Pages in the host's memory at once: all of them, unless all lie on disk."""
        return min(self.pages, max(*self.paging.most, round(self.pages * self.levels.host)))

    @property
    def is_on_disk(self) -> bool:
        """Whether all pages lie on disk."""
        return self.levels.host < 1

    @property
    def sides(self) -> list[tuple[int, int]]:
        """Entries of a page, and numbers of each: of keys and of values, or of values alone."""
        shape = self.plan.shape
        widths = (shape.value_dim,) if self.levels.rank > 0 else (shape.key_dim, shape.value_dim)
        return [(self.paging.size, width) for width in widths]

    @property
    def page(self) -> int:
        """Bytes of a page."""
        return sum(size * width for size, width in self.sides) * self.dtype.itemsize

    def used(self, pages: int, near: int) -> int:
        """Return the bytes of a row on the device, of so many pages and entries of the first and the newest ones."""
        keys = low_rank.held_bytes(self.plan, self.run, self.dtype, self.levels.rank)
        return self._found(pages, min(pages, self.frames), near) + keys

    def read(self, pages: int, near: int) -> int:
        """Return the bytes of a row that a decode step reads on the device; each head reads coordinates of its own."""
        chosen = min(pages, *self.paging.most)
        tokens = chosen * self.paging.size * self.plan.shape.kv_heads
        keys = low_rank.read_bytes(self.plan, self.run, self.dtype, self.levels.rank, tokens)
        return self._found(pages, chosen, near) + keys

    def _found(self, pages: int, at_hand: int, near: int) -> int:
        """Return the bytes of what tells pages apart, of those at hand, and of entries beside them."""
        shape = self.plan.shape
        entries = near * (shape.key_dim + shape.value_dim) * self.dtype.itemsize
        index = self.paging.index_bytes(shape, self.dtype, pages)
        return index + shape.kv_heads * (at_hand * self.page + entries)

    def placed(self) -> Placed:
        """Return the bytes held where once the prompt is read."""
        rows, size = self.run.batch_size, self.paging.size
        lines, pages = rows * self.plan.shape.kv_heads, self.pages
        tables = self.frames * FRAME_BYTES + pages * PAGE_BYTES
        if self.is_on_disk:
            tables += self.host_frames * FRAME_BYTES + pages * PAGE_BYTES
        position = rows * self.plan.score_heads * (self.levels.first + (pages + 1) * size) * torch.int32.itemsize
        score = rows * self.plan.score_heads * size * score_dtype(self.dtype).itemsize
        in_memory = self.host_frames if self.is_on_disk else pages
        return Placed(
            device=rows * self.used(pages, self.levels.first + size) + score,
            host=lines * (in_memory * self.page + tables) + position,
            disk=lines * pages * self.page if self.is_on_disk else 0,
        )

    def used_after(self, tokens_seen: int) -> int:
        """Return the bytes in use on the device after so many columns; none are before the prompt is read."""
        if tokens_seen < self.run.prompt_tokens:
            return 0
        held = zip(self.run.padding, self.plan.held(self.run, tokens_seen), strict=True)
        return sum(self._used_of(tokens_seen - pad - entries) for pad, entries in held)

    def _used_of(self, gone: int) -> int:
        """Return the bytes of a row in use on the device once so many entries have left."""
        first = min(gone, self.levels.first)
        pages, newest = divmod(gone - first, self.paging.size)
        return self.used(pages, first + newest)
