"""Pages told apart by their mean keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.cache.pages import Index, Paging, Rows
from kvbench.cache.plan import score_dtype
from kvbench.types import LayerShape


@dataclass(frozen=True, kw_only=True)
class LandmarkPaging(Paging):
    """Reads the pages of what has left whose mean keys receive the largest attention."""

    reads_slots: ClassVar[bool] = False

    def open_index(self, key: Tensor, count: int) -> Index:
        """Return the mean keys of pages."""
        return Landmarks(key, count)

    def index_bytes(self, shape: LayerShape, dtype: torch.dtype, pages: int) -> int:
        """Return the bytes of the mean keys of so many pages of one row."""
        return pages * shape.kv_heads * shape.key_dim * dtype.itemsize


class Landmarks(Rows):
    """The mean key of each page and head, as keys are rotated.

    Args:
        key: an example [B, G, T, D].
        count: pages there is room for.
    """

    def __init__(self, key: Tensor, count: int) -> None:
        super().__init__(key, count, key.shape[3])

    def put(self, first: int, keys: Tensor, score: Tensor) -> None:
        """Take in pages by their keys [B, G, m, P, D]."""
        self._rows[:, :, first : first + keys.shape[2]] = keys.to(score_dtype(keys.dtype)).mean(dim=3)

    def choose(self, query: Tensor, among: int, most: int) -> Tensor:
        """Return the pages [B, G, most] to which any query of a KV head [B, H, 1, D] pays most of its attention."""
        wide = score_dtype(query.dtype)
        means = self._rows[:, :, :among].to(wide)
        rows = query.to(wide).unflatten(1, (means.shape[1], -1))[:, :, :, 0]
        weights = torch.matmul(rows * rows.shape[-1] ** -0.5, means.transpose(-1, -2)).softmax(dim=-1)
        return weights.amax(dim=2).topk(most, dim=-1, sorted=False).indices
