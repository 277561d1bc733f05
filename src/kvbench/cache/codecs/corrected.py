"""Packed entries that keep what packing did to them, as far as a few directions tell."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvbench.cache.codecs.packed import PackedFormat, PackedPayload
from kvbench.kernels.packed import Run
from kvbench.kernels.packed.corrected import Corrected, Factors

ROUNDS = 3  # of power iteration, the first from random directions
SEED = 0  # of these


@dataclass(frozen=True, kw_only=True)
class CorrectedFormat(PackedFormat):
    """One side of a layer: entries that are packed together share the directions of their corrections.

    Args:
        rank: directions of what is packed of a prompt, at most.
        block_rank: directions of what is packed at once while decoding, at most.
        prompt: entries that come with the prompt, for counting bytes.
    """

    rank: int
    block_rank: int
    prompt: int

    def after(self, prompt: int) -> CorrectedFormat:
        """Return how entries are written behind so many that came with the prompt."""
        return replace(self, prompt=prompt)

    def empty(self, like: Tensor, capacity: int) -> CorrectedPayload:
        """Return room for `capacity` entries shaped as `like` [B, G, T, D]."""
        return CorrectedPayload(self, like, capacity)

    def packed_bytes(self, dim: int, entries: int) -> int:
        """Return the bytes of so many packed entries of one head, corrections included."""
        numbers = sum(
            blocks * rank * (tokens + dim)
            for blocks, tokens, rank in self.blocks(dim, self.packed(self.prompt), entries)
        )
        return super().packed_bytes(dim, entries) + numbers * torch.float16.itemsize

    def blocks(self, dim: int, prompt: int, entries: int) -> list[tuple[int, int, int]]:
        """Return how many blocks there are, of how many tokens and directions, of so many packed entries.

        Args:
            dim: numbers of an entry.
            prompt: packed entries that came with the prompt.
            entries: packed entries, these included.
        """
        first = min(prompt, entries)
        return [
            (blocks, tokens, min(rank, tokens, dim))
            for blocks, tokens, rank in (
                (min(1, first), first, self.rank),
                ((entries - first) // self.flush, self.flush, self.block_rank),
            )
        ]


class CorrectedPayload(PackedPayload):
    """Codes, a ring of exact entries, and corrections of what the codes stand for.

    Args:
        how: entries are written.
        like: an example of entries [B, G, T, D].
        capacity: slots per row and head.
    """

    how: CorrectedFormat

    def __init__(self, how: CorrectedFormat, like: Tensor, capacity: int) -> None:
        super().__init__(how, like, capacity)
        self.prompt = 0  # packed entries that came with it
        self.factors: list[Factors] = []  # of the prompt, and of blocks that are packed later

    def write(self, start: int, entries: Tensor, position: Tensor | int | None = None) -> None:
        """Store entries [B, G, T, D] at slots start .. start + T."""
        if start == 0:
            self.prompt = self.how.packed(entries.shape[2])
            self.factors = self._room_for_factors(self.capacity)
        super().write(start, entries, position)

    def _room_for_factors(self, capacity: int) -> list[Factors]:
        batch, heads, _, dim = self.exact.shape
        return [
            Factors(
                left=self.exact.new_zeros((batch, heads, blocks, tokens, rank), dtype=torch.float16),
                right=self.exact.new_zeros((batch, heads, blocks, rank, dim), dtype=torch.float16),
            )
            for blocks, tokens, rank in self.how.blocks(dim, self.prompt, self.how.packed(capacity))
        ]

    def _pack(self, at: int | Tensor, entries: Tensor) -> None:
        super()._pack(at, entries)
        if entries.shape[2] == 0:
            return
        assert isinstance(at, int), "entries are corrected together"
        start = at
        stop, is_later = start + entries.shape[2], start >= self.prompt
        block = (start - self.prompt) // self.how.flush if is_later else 0
        to = self.factors[is_later]
        wide = torch.promote_types(self.dtype, torch.float32)
        error = entries.to(wide) - super()._coded(stop).dense(start, stop, wide)
        left, right = low_rank(error, to.left.shape[4])
        to.left[:, :, block].copy_(left)
        to.right[:, :, block].copy_(right)

    def _coded(self, count: int) -> Run:
        """Return the first entries as attention reads them, each with its correction."""
        later = (count - self.prompt) // self.how.flush
        factors = [
            Factors(each.left[:, :, :blocks], each.right[:, :, :blocks])
            for each, blocks in zip(self.factors, (1, later), strict=True)
            if each.left.shape[4] > 0 and blocks > 0
        ]
        return Corrected(super()._coded(count), factors)

    def grow(self, capacity: int, used: int) -> None:
        """Move to storage for `capacity` slots; the old storage is freed."""
        super().grow(capacity, used)
        before, self.factors = self.factors, self._room_for_factors(capacity)
        for room, each in zip(self.factors, before, strict=True):
            room.left.narrow(2, 0, each.left.shape[2]).copy_(each.left)
            room.right.narrow(2, 0, each.right.shape[2]).copy_(each.right)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held, what entries are packed with included, which caches of one model share."""
        return (*super().tensors(), *(factor for each in self.factors for factor in (each.left, each.right)))


def low_rank(numbers: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return factors [..., T, r] and [..., r, D] whose product is near numbers [..., T, D], by power iteration.

    What they leave is what lies outside the left one's directions, so that it is never longer than the numbers.
    """
    random = torch.Generator().manual_seed(SEED)
    drawn = torch.randn(numbers.shape[-1], rank, generator=random)
    right = drawn.to(numbers).expand(*numbers.shape[:-2], -1, -1)
    left = numbers.new_empty((*numbers.shape[:-1], 0))
    for _ in range(ROUNDS if rank > 0 else 0):
        left = torch.linalg.qr(torch.matmul(numbers, right)).Q
        right = torch.matmul(numbers.mT, left)
    return left, right.mT
