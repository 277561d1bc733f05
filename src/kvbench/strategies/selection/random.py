"""Entries matter by lot: the control every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.cache.plan import PromptView, score_dtype
from kvbench.strategies.selection.scorer import ScorerDefaults

_PRIME = 2**31 - 1  # products of two residues stay inside int64
_MULTIPLIERS = (48_271, 69_621, 630_360_016)  # full-period multipliers modulo the prime


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
        lot = (position.long() + 1) * 1_000_003 + head * 7_919 + layer * 104_729 + self.seed * 15_485_863
        for multiplier in _MULTIPLIERS:
            lot = (lot.remainder(_PRIME) * multiplier).remainder(_PRIME)
            lot = lot ^ (lot >> 13)
        return lot.remainder(_PRIME).to(score_dtype(key.dtype)) / _PRIME
