"""Packed rows, and what packing did to them as products of two thin matrices, which are never multiplied out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kvbench.kernels.packed import Run

TILE = 512  # rows whose factors are read at once


@dataclass(frozen=True)
class Factors:
    """Corrections of neighbouring blocks of rows, each the product of what its rows, and what its channels, have.

    Args:
        left: of n blocks of t rows each, float16 [B, G, n, t, r].
        right: of the blocks, float16 [B, G, n, r, D].
    """

    left: Tensor
    right: Tensor

    @property
    def length(self) -> int:
        """Rows of each head."""
        return self.left.shape[2] * self.left.shape[3]

    def dense(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Return the corrections of rows start .. stop as numbers [B, G, stop - start, D]."""
        rows, found = self.left.shape[3], []
        for block in range(start // rows, -(-stop // rows)):
            first = block * rows
            mine = self.left[:, :, block, max(start - first, 0) : stop - first]
            found.append(torch.matmul(mine.to(dtype), self.right[:, :, block].to(dtype)))
        return torch.cat(found, dim=2)

    def add_logits(self, rows: Tensor, out: Tensor) -> None:
        """Add the products of rows [B, G, g, D] with the corrections to out [B, G, g, m]."""
        blocks = out.unflatten(3, self.left.shape[2:4])
        for at, left, right in self._tiles(rows.dtype):
            products = torch.matmul(torch.matmul(rows[:, :, None], right.mT), left.mT)
            blocks[:, :, :, *at] += products.transpose(2, 3)

    def add_weighted(self, weights: Tensor, out: Tensor) -> None:
        """Add the sum of the corrections by weights [B, G, g, m] to out [B, G, g, D]."""
        blocks = weights.unflatten(3, self.left.shape[2:4])
        for at, left, right in self._tiles(out.dtype):
            mine = blocks[:, :, :, *at].transpose(2, 3).to(out.dtype)
            out += torch.matmul(torch.matmul(mine, left), right).sum(dim=2)

    def _tiles(self, dtype: torch.dtype) -> Iterator[tuple[tuple[slice, slice], Tensor, Tensor]]:
        """Yield blocks and rows of theirs, a few at a time, and both factors of these."""
        blocks, rows = self.left.shape[2:4]
        for block in range(0, blocks, max(1, TILE // rows)):
            some = slice(block, block + max(1, TILE // rows))
            for row in range(0, rows, TILE):
                at = some, slice(row, row + TILE)
                yield at, self.left[:, :, *at].to(dtype), self.right[:, :, some].to(dtype)


@dataclass(frozen=True)
class Corrected:
    """A run of packed rows, each with its correction.

    Args:
        packed: rows without.
        factors: of the corrections, in the order of the rows.
    """

    packed: Run
    factors: Sequence[Factors]

    @property
    def length(self) -> int:
        """Rows of each head."""
        return self.packed.length

    @property
    def groups(self) -> int:
        """KV heads."""
        return self.packed.groups

    @property
    def outlier_rows(self) -> float:
        """As many rows of each head as outliers would fill."""
        return self.packed.outlier_rows

    def dense(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Return rows start .. stop as numbers [B, G, stop - start, D]."""
        out = self.packed.dense(start, stop, dtype)
        for first, each in self._parts():
            low, high = max(start, first), min(stop, first + each.length)
            if low < high:
                out[:, :, low - start : high - start] += each.dense(low - first, high - first, dtype)
        return out

    def logits(self, rows: Tensor, out: Tensor) -> None:
        """Write the products of rows [B, G, g, D], float32 or wider, into out [B, G, g, m]."""
        self.packed.logits(rows, out)
        for first, each in self._parts():
            each.add_logits(rows, out.narrow(3, first, each.length))

    def weighted(self, weights: Tensor) -> Tensor:
        """Return the sum of the rows by weights [B, G, g, m], as [B, G, g, D]."""
        out = self.packed.weighted(weights)
        for first, each in self._parts():
            each.add_weighted(weights.narrow(3, first, each.length), out)
        return out

    def _parts(self) -> Iterator[tuple[int, Factors]]:
        """Yield where the rows of each begin."""
        first = 0
        for each in self.factors:
            yield first, each
            first += each.length
