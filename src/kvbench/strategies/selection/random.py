"""Entries matter by lot: the control every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.cache.plan import score_dtype
from kvbench.cache.views import PromptView
from kvbench.strategies.selection.lots import PRIME, lots
from kvbench.strategies.selection.scorer import ScorerDefaults


@dataclass(frozen=True, kw_only=True)
class RandomScore(ScorerDefaults):
    """A fixed lot per seed, layer, KV head and position, so that batching and chunking change nothing.

    Source: the control of NVIDIA/kvpress (RandomPress); the lot here is a hash instead of a generator's state.

    Args:
        seed: another seed is another draw.
    """

    seed: int

    def prompt(self, view: PromptView) -> Tensor:
        """Return the lots [B, G, n]."""
        return self._lot(view.position, view.keys, view.layer)

    def entry(self, key: Tensor, position: Tensor, layer: int) -> Tensor:
        """Return the lot of a new entry [B, G, 1]."""
        return self._lot(position, key, layer)

    def _lot(self, position: Tensor, key: Tensor, layer: int) -> Tensor:
        head = torch.arange(key.shape[1], device=key.device)[:, None]
        return lots(self.seed, layer, head, position).to(score_dtype(key.dtype)) / PRIME
