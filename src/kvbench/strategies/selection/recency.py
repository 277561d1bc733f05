"""The newest entries matter most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvbench.cache.plan import score_dtype
from kvbench.cache.views import PromptView
from kvbench.strategies.selection.scorer import ScorerDefaults


@dataclass(frozen=True, kw_only=True)
class Recency(ScorerDefaults):
    """Scores an entry by its position: with protected sinks this is the sink-and-window rule.

    Source: sliding window; with sinks, Xiao et al., arXiv:2309.17453, sec. 3.2.
    Deviates: the newest entry is attended to on top of the budget before the oldest one leaves, as in every
        method here, so that equal budgets mean equal caches.
    """

    per_head: ClassVar[bool] = False
    is_recency: ClassVar[bool] = True

    def prompt(self, view: PromptView) -> Tensor:
        """Return the positions [B, 1, n]."""
        return view.position.to(score_dtype(view.keys.dtype))

    def entry(self, key: Tensor, position: Tensor, layer: int) -> Tensor:
        """Return the position [B, 1, 1]."""
        return position.to(score_dtype(key.dtype))
