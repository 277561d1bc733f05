"""Entries matter by the attention of a question at the prompt's end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.cache.plan import score_dtype
from kvbench.cache.views import PromptView
from kvbench.strategies.selection.scorer import ScorerDefaults


@dataclass(frozen=True, kw_only=True)
class QuestionAttention(ScorerDefaults):
    """The attention of the prompt's last queries, each times the number of keys it sees, averaged over them.

    Source: Corallo and Papotti (FINCH), arXiv:2408.00167; the scores are those of FinchPress in
        NVIDIA/kvpress.
    Deviates: a query counts its own key among those it sees (kvpress leaves it out).

    Args:
        window: tokens of the question, at the prompt's end.
    """

    window: int

    def __post_init__(self) -> None:
        """Refuse questions that mean nothing."""
        if self.window < 1:
            raise ValueError(f"strategy.scorer.window must be at least 1 token; got {self.window}.")

    def voters(self, tokens: int) -> int:
        """Return how many queries the question has."""
        return self.window

    def prompt(self, view: PromptView) -> Tensor:
        """Return the weighted attention, the mean over the group and the question [B, G, n]."""
        query_position = view.query_position[:, -self.window :]
        total = torch.zeros(view.keys.shape[:3], dtype=score_dtype(view.keys.dtype), device=view.keys.device)
        for weights, at in view.attention(self.window):
            seen = (at + 1).clamp(min=0).to(weights.dtype)
            total[..., : weights.shape[-1]] += (weights * seen[:, None, None, :, None]).sum(dim=3).mean(dim=2)
        return total / (query_position >= 0).sum(dim=-1)[:, None, None]
