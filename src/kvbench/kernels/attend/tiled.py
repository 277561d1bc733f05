"""Attention by a device with little fast memory: tile by tile, and the bytes that cross are counted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """What lies in fast memory at once.

    Args:
        rows: queries of a tile.
        columns: keys, and values, of a tile.
        is_causal: whether a query sees no later key; the last query sees the last key.
    """

    rows: int
    columns: int
    is_causal: bool

    def seen(self, first: int, queries: int, keys: int) -> int:
        """Return how many keys lie in the tiles that the queries from `first` on read."""
        if not self.is_causal:
            return keys
        last = min(first + self.rows, queries) + keys - queries
        return min(keys, max(0, -(-last // self.columns)) * self.columns)

    def crossing(self, queries: int, keys: int, dim: int, item: int) -> int:
        """Return the bytes that cross for one head: queries and answers once, the others for every tile of queries.

        Args:
            queries: tokens.
            keys: tokens.
            dim: numbers of a query, a key, a value.
            item: bytes of a number; sums of exponentials are float32.
        """
        read = sum(self.seen(first, queries, keys) for first in range(0, queries, self.rows))
        return item * dim * (2 * queries + 2 * read) + 4 * queries

    def fast_bytes(self, dim: int, item: int) -> int:
        """Return the bytes of fast memory: tiles of queries, keys and values, and in float32 logits and sums."""
        return item * dim * (self.rows + 2 * self.columns) + 4 * self.rows * (self.columns + dim + 2)


def crossing_untiled(queries: int, keys: int, dim: int, item: int) -> int:
    """Return the bytes that cross for one head where logits and weights are written down, and read again."""
    return item * (dim * (2 * queries + 2 * keys) + 4 * queries * keys)


def attend_tiled(
    query: Tensor, keys: Tensor, values: Tensor, scale: float, tiling: Tiling
) -> tuple[Tensor, Tensor, int]:
    """Attention with a running maximum and a running sum, so that no row of logits ever exists.

    Source: Dao et al. (FlashAttention), arXiv:2205.14135, alg. 1, with queries in the outer loop as in
    arXiv:2307.08691, sec. 3.1.

    Args:
        query: [B, H, T, D].
        keys: [B, H, m, D].
        values: [B, H, m, D].
        scale: factor of the logits.
        tiling: what is at hand at once.

    Returns:
        The output [B, H, T, D], 0 for a query that sees nothing; the log of the sum of the logits' exponentials
        [B, H, T]; and how many bytes crossed, counted as they did.
    """
    (batch, heads, length, _), entries = query.shape, keys.shape[2]
    wide = torch.promote_types(query.dtype, torch.float32)
    out, log_sum = torch.empty_like(query), query.new_empty((batch, heads, length), dtype=wide)
    crossed = 0
    for first in range(0, length, tiling.rows):
        rows = query[:, :, first : first + tiling.rows]
        crossed += rows.numel() * rows.itemsize
        count = rows.shape[2]
        largest = rows.new_full((batch, heads, count, 1), -math.inf, dtype=wide)
        total, summed = torch.zeros_like(largest), torch.zeros_like(rows, dtype=wide)
        for start in range(0, tiling.seen(first, length, entries), tiling.columns):
            key, value = (t[:, :, start : start + tiling.columns] for t in (keys, values))
            crossed += (key.numel() + value.numel()) * key.itemsize
            logits = (rows @ key.mT).to(wide) * scale
            if tiling.is_causal:
                at = torch.arange(first, first + count, device=query.device)[:, None] + entries - length
                logits = logits.masked_fill(
                    torch.arange(start, start + key.shape[2], device=query.device) > at, -math.inf
                )
            before, largest = largest, torch.maximum(largest, logits.amax(dim=-1, keepdim=True))
            finite = largest.masked_fill(largest == -math.inf, 0)
            weights, shrunk = (logits - finite).exp(), (before - finite).exp()
            total = shrunk * total + weights.sum(dim=-1, keepdim=True)
            summed = shrunk * summed + weights @ value.to(wide)
        out[:, :, first : first + count] = (summed / total.clamp(min=torch.finfo(wide).tiny)).to(query.dtype)
        log_sum[:, :, first : first + count] = (largest + total.log())[..., 0]
        crossed += rows.numel() * rows.itemsize + batch * heads * count * 4
    return out, log_sum, crossed
