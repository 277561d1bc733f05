"""Layers of a model that forgets its prompt but for what blocks have made of an encoding of it."""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.cache.layer import CacheLayer
from kvbench.cache.plan import LayerPlan
from kvbench.cache.rotary import turn
from kvbench.cache.store import Store, positions
from kvbench.types import RunShape


class ForgettingLayer(CacheLayer):
    """Attends to the prompt while it is read, and keeps what follows it alone, at positions from 0."""

    def _end_of_pass(
        self, query: Tensor, keys: Tensor, values: Tensor, position: Tensor, at: Tensor, scale: float, is_last: bool
    ) -> None:
        if is_last:
            self._chunks = None
            regions = self.plan.regions(self.run.of("new"))
            self.stores = [(region, Store(region.plan, region.run, None, keys, values)) for region in regions]


class ContextLayer(CacheLayer):
    """Keeps keys and values of the prompt's encoding, which decode steps read and add nothing to.

    Args:
        plan: what to do.
        run: how long the rows of the batch are.
        padding: columns of padding per row [B, 1, 1], or None where there is none.
        empty: a tensor [0] of the dtype and on the device of keys and values.
    """

    def __init__(self, plan: LayerPlan, run: RunShape, padding: Tensor | None, empty: Tensor) -> None:
        super().__init__(plan, run.of("prompt"), padding, empty)

    def read(self, key: Tensor, value: Tensor, *, is_last: bool) -> None:
        """Keep what was made of the next tokens of the prompt.

        Args:
            key: [B, G, T, D], not rotated.
            value: [B, G, T, D_v].
            is_last: whether they end the prompt.
        """
        batch, _, tokens, _ = key.shape
        self._check_prompt(batch, self.seen + tokens, is_last)
        at = positions(self.seen, tokens, batch, self.padding, key.device)[:, None]
        self.seen += tokens
        chunks = self._gathering(key, value)
        chunks.append(self._rotated(key, at), value, at)
        if is_last:
            keys, values = chunks.keys.read(chunks.filled), chunks.values.read(chunks.filled)
            position, nobody = chunks.position.narrow(2, 0, chunks.filled), self._nobody(key)
            self._end_of_pass(nobody, keys, values, position, position[:, 0, :0], 1.0, is_last)

    def _nobody(self, key: Tensor) -> Tensor:
        """Return the queries of no token."""
        return key.new_empty(len(key), self.plan.shape.query_heads, 0, key.shape[3])

    def cross(self, query: Tensor, scale: float) -> Tensor:
        """Return the attention [B, H, t, D_v] of the next tokens behind the prompt to all of it.

        Args:
            query: [B, H, t, D], not rotated.
            scale: factor of the logits.
        """
        tokens = query.shape[2]
        at = positions(self.seen, tokens, len(query), self.padding, query.device)
        self.seen += tokens
        query = self._rotated(query, at[:, None])
        return torch.cat([self.look(one, scale) for one in query.split(1, dim=2)], dim=2)

    def _rotated(self, rows: Tensor, at: Tensor) -> Tensor:
        rotary = self.plan.shape.rotary
        return rows if rotary is None else turn(rows, at.clamp(min=0), rotary)
