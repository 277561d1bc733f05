"""Entries with small keys matter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.cache.plan import score_dtype
from kvbench.cache.views import PromptView
from kvbench.strategies.selection.scorer import ScorerDefaults


@dataclass(frozen=True, kw_only=True)
class KeyNorm(ScorerDefaults):
    """The negative L2 norm of the key; rotation keeps norms, so RoPE does not matter.

    Source: Devoto et al. (L2 compression), arXiv:2406.11430, sec. 3.
    """

    def prompt(self, view: PromptView) -> Tensor:
        """Return the negative norms [B, G, n]."""
        return _negative_norm(view.keys)

    def entry(self, key: Tensor, position: Tensor, layer: int) -> Tensor:
        """Return the negative norm of a new key [B, G, 1]."""
        return _negative_norm(key)


def _negative_norm(keys: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(keys, dim=-1, dtype=score_dtype(keys.dtype))
    return -norm
