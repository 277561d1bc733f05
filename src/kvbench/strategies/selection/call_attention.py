"""Entries matter by the attention that one call of the model pays them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from kvbench.cache.views import Observation, PromptView
from kvbench.strategies.selection.scorer import ScorerDefaults


@dataclass(frozen=True, kw_only=True)
class CallAttention(ScorerDefaults):
    """The attention the latest call pays: all rows of the prompt at first, then one row per new token.

    Source: mkurman (fixed-size-kv-cache), code.
    Deviates: with grouped queries the group's mean counts (the code takes the first heads); calls can also be summed
        or averaged.

    Args:
        accumulate: "none" for the latest call alone, "sum" of all calls, or "ema", their running mean.
        decay: what a running mean keeps of itself at each call; the prompt starts it.
    """

    needs_weights: ClassVar[bool] = True
    accumulates: ClassVar[bool] = True

    accumulate: Literal["none", "ema", "sum"]
    decay: float

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if self.accumulate not in ("none", "ema", "sum"):
            raise ValueError(f"strategy.scorer.accumulate must be none, ema or sum; got {self.accumulate!r}.")
        if not 0 <= self.decay < 1:
            raise ValueError(f"strategy.scorer.decay must be at least 0 and below 1; got {self.decay}.")

    def prompt(self, view: PromptView) -> Tensor:
        """Return the attention received from the queries of this pass [B, G, n]."""
        return view.attention_received()

    def observe(self, seen: Observation) -> None:
        """Replace the scores by the group's mean weight, or add it."""
        weights = seen.weights.mean(dim=2)
        if self.accumulate == "none":
            seen.score.copy_(weights)
        elif self.accumulate == "sum":
            seen.score.add_(weights)
        else:
            seen.score.lerp_(weights, 1 - self.decay)
