"""Blocks of entries, and the few keys of each by which a decode step chooses the blocks it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.cache.pages import Index, Paging, Rows
from kvbench.cache.plan import score_dtype
from kvbench.types import LayerShape


@dataclass(frozen=True, kw_only=True)
class Blocks(Paging):
    """Pages that are told apart by a few of their keys.

    Args:
        size: entries of a block.
        most: blocks read per row.
        representatives: keys that stand for a block.
    """

    reads_slots: ClassVar[bool] = False

    representatives: int

    def open_index(self, key: Tensor, count: int) -> Index:
        """Return what tells so many blocks apart, yet empty; `key` is an example [B, G, T, D]."""
        return Representatives(key, count, self.representatives)

    def index_bytes(self, shape: LayerShape, dtype: torch.dtype, pages: int) -> int:
        """Return the bytes of what tells so many blocks of one row apart."""
        return pages * shape.kv_heads * shape.key_dim * dtype.itemsize


class Representatives(Rows):
    """For each block and head the mean of the keys that have received most attention.

    Args:
        key: an example [B, G, T, D].
        count: blocks there is room for.
        representatives: keys that stand for a block.
    """

    def __init__(self, key: Tensor, count: int, representatives: int) -> None:
        super().__init__(key, count, key.shape[3])
        self._most = representatives

    def put(self, first: int, keys: Tensor, score: Tensor) -> None:
        """Take in blocks by their keys [B, G, m, P, D] and scores [B, 1 or G, m, P]."""
        at = score.topk(self._most, dim=-1).indices.expand(-1, keys.shape[1], -1, -1)
        means = keys.gather(3, at[..., None].expand(-1, -1, -1, -1, keys.shape[4])).mean(dim=3)
        self._rows[:, :, first : first + keys.shape[2]] = means

    def choose(self, query: Tensor, among: int, most: int) -> Tensor:
        """Return which of the first blocks a query [B, H, 1, D] needs most [B, G, most]: the same for all heads."""
        batch, heads = self._rows.shape[:2]
        rows = query.to(score_dtype(query.dtype)).unflatten(1, (heads, -1)).sum(dim=2)
        score = torch.matmul(self._rows[:, :, :among].to(rows.dtype), rows.transpose(-1, -2))[..., 0].sum(dim=1)
        chosen = score.topk(most, dim=-1, sorted=False).indices
        return chosen[:, None].expand(batch, heads, most)
