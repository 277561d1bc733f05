"""What most scorers have in common."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from kvbench.cache.plan import score_dtype


class ScorerDefaults:
    """A scorer per KV head that looks at the last pass of the prompt and at nothing while decoding."""

    per_head: ClassVar[bool] = True
    is_recency: ClassVar[bool] = False
    needs_weights: ClassVar[bool] = False
    accumulates: ClassVar[bool] = False

    @property
    def query_window(self) -> int:
        """How many of the prompt's last queries must be at hand."""
        return 0

    def entry(self, key: Tensor, position: Tensor, layer: int) -> Tensor:
        """Return a score of zero [B, G, 1]."""
        return torch.zeros(key.shape[:3], dtype=score_dtype(key.dtype), device=key.device)

    def observe(self, score: Tensor, weights: Tensor) -> None:
        """Leave the scores as they are."""
