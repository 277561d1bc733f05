"""Storage of one layer as slots: an entry's slot has no meaning, its position is a row beside it."""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.cache.codecs.dense import Codec
from kvbench.kernels.attend import Tile


class Slots:
    """Keys, values and the rows beside them.

    Args:
        codec: how entries are written.
        key: an example [B, G, T, D].
        value: an example [B, G, T, D_v].
        capacity: slots per row and head.
        heads: kept sets per row, 1 or G.
        score_dtype: of the score row, or None where no score is kept.
    """

    def __init__(
        self, codec: Codec, key: Tensor, value: Tensor, capacity: int, *, heads: int, score_dtype: torch.dtype | None
    ) -> None:
        batch = key.shape[0]
        self.keys = codec.empty(key, capacity)
        self.values = codec.empty(value, capacity)
        self.position = key.new_full((batch, heads, capacity), -1, dtype=torch.int32)
        self.score = None if score_dtype is None else key.new_zeros((batch, heads, capacity), dtype=score_dtype)
        self.filled = 0  # slots in use by at least one row
        self.has_holes = False  # whether some of them are empty in some row

    @property
    def capacity(self) -> int:
        """Slots per row and head."""
        return self.keys.capacity

    def append(self, key: Tensor, value: Tensor, position: Tensor | int, score: Tensor | None = None) -> None:
        """Store entries [B, G, T, D] in the next slots, the same ones for every row.

        Args:
            key: [B, G, T, D].
            value: [B, G, T, D_v].
            position: [B, 1 or heads, T], or the one position of a single entry.
            score: [B, heads, T], where scores are kept.
        """
        self.put(self.filled, key, value, position, score)
        self.filled += key.shape[2]

    def put(self, slot: int, key: Tensor, value: Tensor, position: Tensor | int, score: Tensor | None) -> None:
        """Store entries at slot, slot + 1 ... of every row; arguments as of `append`."""
        count = key.shape[2]
        self.keys.write(slot, key)
        self.values.write(slot, value)
        if isinstance(position, int):
            self.position.select(2, slot).fill_(position)
        else:
            self.position.narrow(2, slot, count).copy_(position)
        if self.score is not None and score is not None:
            self.score.narrow(2, slot, count).copy_(score)

    def scatter(self, slot: Tensor, key: Tensor, value: Tensor, position: Tensor | int, score: Tensor) -> None:
        """Store one entry per row and kept set at its own slot [B, heads]; other arguments as of `append`."""
        self.keys.scatter(slot, key)
        self.values.scatter(slot, value)
        at = slot[:, :, None]
        if isinstance(position, int):
            self.position.scatter_(2, at, position)
        else:
            self.position.scatter_(2, at, position.expand(at.shape))
        assert self.score is not None
        self.score.scatter_(2, at, score.expand(at.shape))

    def grow(self, capacity: int) -> None:
        """Move to a larger storage, keys first, so that only one of the two is ever held twice."""
        self.keys.grow(capacity, self.filled)
        self.values.grow(capacity, self.filled)
        wider = self.position.new_full((*self.position.shape[:2], capacity), -1)
        wider.narrow(2, 0, self.filled).copy_(self.position.narrow(2, 0, self.filled))
        self.position = wider

    def tiles(self) -> list[Tile]:
        """Return what attention reads."""
        visible = (self.position.narrow(2, 0, self.filled) >= 0) if self.has_holes else None
        return [Tile(self.keys.read(self.filled), self.values.read(self.filled), visible=visible)]

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held."""
        scores = () if self.score is None else (self.score,)
        return (*self.keys.tensors(), *self.values.tensors(), self.position, *scores)
