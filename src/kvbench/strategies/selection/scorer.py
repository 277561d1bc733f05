"""What most scorers have in common."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from kvbench.cache.plan import score_dtype
from kvbench.cache.views import Observation, PromptView


class ScorerDefaults:
    """A scorer per KV head that looks at the last pass of the prompt and at nothing while decoding."""

    per_head: ClassVar[bool] = True
    is_recency: ClassVar[bool] = False
    needs_weights: ClassVar[bool] = False
    scores_again: ClassVar[bool] = False
    accumulates: ClassVar[bool] = False
    memory_bytes: ClassVar[int] = 0

    def voters(self, tokens: int) -> int:
        """Return how many of the last queries of a prompt must be at hand."""
        return 0

    def memory(self, view: PromptView) -> Tensor | None:
        """Return None: whatever `observe` keeps beside a score begins with 0."""
        return None

    def entry(self, key: Tensor, position: Tensor, layer: int) -> Tensor:
        """Return a score of zero [B, G, 1]."""
        return torch.zeros(key.shape[:3], dtype=score_dtype(key.dtype), device=key.device)

    def observe(self, seen: Observation) -> None:
        """Leave the scores as they are."""
