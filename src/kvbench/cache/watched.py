"""A full cache that tells where the attention of decoded tokens goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.doors import Handle
from kvbench.cache.kv_cache import KVCache
from kvbench.cache.layer import CacheLayer
from kvbench.cache.plan import LayerPlan
from kvbench.kernels.attend import attend_one
from kvbench.types import ModelView, RunShape, Step


class WatchedCache(KVCache):
    """A cache from whose layers nothing leaves but what a window has passed, and the attention paid to them.

    Args:
        plans: one per layer.
        view: of the model.
        run: how long the rows of the batch are, all alike.
    """

    received: list[Tensor]  # of each layer, by every position so far, from the last decoded token [B, G, T]: sums to 1

    def __init__(self, plans: Sequence[LayerPlan], view: ModelView, run: RunShape) -> None:
        """Build empty layers."""
        super().__init__(plans, view, run)
        self.received = [torch.empty(0)] * len(plans)

    def update(  # type: ignore[override]
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Handle, Handle]:
        """Return handles of layers that are looked at."""
        handle, _ = super().update(key_states, value_states, layer_idx)
        noting = replace(handle, layer=_Noting(self.layers[layer_idx], self.received))
        return noting, noting


class _Noting:
    """A layer, and where it notes what each position received."""

    def __init__(self, layer: CacheLayer, received: list[Tensor]) -> None:
        self.layer, self.received = layer, received
        self.plan, self.padding = layer.plan, layer.padding

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, step: Step) -> Tensor:
        out = self.layer.attend(query, key, value, scale, step)
        if step.phase == "decode":
            self.received[self.plan.index] = self._received(query, scale)
        return out

    def _received(self, query: Tensor, scale: float) -> Tensor:
        """Return the attention of one query per head by position, as a mean over the heads that share keys."""
        ((_, store),) = self.layer.stores
        slots = store.slots
        _, weights = attend_one(query, slots.tiles(), scale, with_weights=True)
        assert weights is not None
        mean = weights[0].mean(dim=2)
        at = slots.position.narrow(2, 0, slots.filled).expand_as(mean).long()
        return mean.new_zeros((*mean.shape[:2], self.layer.seen)).scatter_add_(2, at, mean)
