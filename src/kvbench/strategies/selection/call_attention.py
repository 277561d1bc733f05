"""Entries matter by the attention that one call of the model pays them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvbench.cache.views import Observation, PromptView
from kvbench.strategies.selection.scorer import ScorerDefaults

_NUMBERS = 2  # float32 that are remembered of an entry: the mean of its calls and how many they are


@dataclass(frozen=True, kw_only=True)
class CallAttention(ScorerDefaults):
    """The attention the latest call pays: all rows of the prompt at first, then one row per new token.

    How much an entry mattered so far can be remembered beside its score: the mean attention of its last calls.

    Source: mkurman (fixed-size-kv-cache), code.
    Deviates: with grouped queries the group's mean counts (the code takes the first heads); calls can also be summed
        or averaged. Of the last calls a mean and a number are remembered, 8 bytes, where the code keeps every score,
        which would be 400 for 100 calls: the mean is exact until there are `importance_window` of them, then old ones
        fade instead of being forgotten at once. The prompt is one call, by its mean over the queries that see an entry
        (the code's sum over all queries is above any threshold).

    Args:
        accumulate: "none" for the latest call alone, "sum" of all calls, or "ema", their running mean.
        decay: what a running mean keeps of itself at each call; the prompt starts it.
        importance_window: calls that are remembered of an entry; 0 for none.
    """

    needs_weights: ClassVar[bool] = True
    accumulates: ClassVar[bool] = True

    accumulate: Literal["none", "ema", "sum"]
    decay: float
    importance_window: int

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if self.accumulate not in ("none", "ema", "sum"):
            raise ValueError(f"strategy.scorer.accumulate must be none, ema or sum; got {self.accumulate!r}.")
        if not 0 <= self.decay < 1:
            raise ValueError(f"strategy.scorer.decay must be at least 0 and below 1; got {self.decay}.")
        if self.importance_window < 0:
            raise ValueError(
                f"strategy.scorer.importance_window must be a number of calls, or 0 for none; got "
                f"{self.importance_window}."
            )

    @property
    def memory_bytes(self) -> int:  # type: ignore[override]
        """Bytes that are remembered of an entry."""
        return _NUMBERS * torch.float32.itemsize if self.importance_window > 0 else 0

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
        if seen.memory is not None:
            mean, calls = seen.memory.view(torch.float32).unbind(dim=-1)
            calls.add_(1).clamp_(max=self.importance_window)
            mean.add_((weights - mean) / calls)

    def importance(self, memory: Tensor) -> Tensor:
        """Return the mean attention of an entry's calls, float32 [...], given what is remembered of it [..., 8]."""
        return memory.view(torch.float32)[..., 0]

    def remembered(self, mean: Tensor) -> Tensor:
        """Return what is remembered of entries [...] with one call that paid them so much [..., 8]."""
        mean = mean.float()
        return torch.stack([mean, torch.ones_like(mean)], dim=-1).view(torch.uint8)
