"""Entries matter by the attention they receive."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvbench.cache.views import Observation, PromptView
from kvbench.strategies.selection.scorer import ScorerDefaults


@dataclass(frozen=True, kw_only=True)
class AttentionMass(ScorerDefaults):
    """The attention an entry has received from every query so far, summed in float32 and not normalised.

    Source: Zhang et al. (H2O), arXiv:2306.14048, algorithm 1.
    Deviates: with grouped queries the mean over a group's query heads is summed (the authors' code is MHA only);
        the window of recent entries has no hole (their masking code hides one token for a step).
    """

    needs_weights: ClassVar[bool] = True
    accumulates: ClassVar[bool] = True

    def prompt(self, view: PromptView) -> Tensor:
        """Return the attention received from the queries of this pass [B, G, n]."""
        return view.attention_received()

    def observe(self, seen: Observation) -> None:
        """Add the group's mean weight."""
        weights = seen.weights
        seen.score.add_(weights[:, :, 0] if weights.shape[2] == 1 else weights.mean(dim=2))


@dataclass(frozen=True, kw_only=True)
class LastQuery(ScorerDefaults):
    """The attention the latest query pays, averaged over all heads of the layer: one kept set for all of them.

    Source: Oren et al. (TOVA), arXiv:2401.06104, sec. 3.
    """

    per_head: ClassVar[bool] = False
    needs_weights: ClassVar[bool] = True

    def prompt(self, view: PromptView) -> Tensor:
        """Return the last query's attention [B, 1, n]."""
        return view.attention_received(last=1).mean(dim=1, keepdim=True)

    def entry(self, key: Tensor, position: Tensor, layer: int) -> Tensor:
        """Return a score of zero [B, 1, 1]; `observe` sets it in the same step."""
        return super().entry(key, position, layer)[:, :1]

    def observe(self, seen: Observation) -> None:
        """Replace the scores by the mean weight over all heads."""
        torch.mean(seen.weights.flatten(1, 2), dim=1, keepdim=True, out=seen.score)


@dataclass(frozen=True, kw_only=True)
class WindowAttention(ScorerDefaults):
    """The attention the last queries of the prompt pay, smoothed over neighbouring positions.

    Source: Li et al. (SnapKV), arXiv:2404.14469, sec. 4.
    Deviates: with grouped queries the group's mean decides per KV head (the authors' code caches repeated heads);
        pooling comes last.

    Args:
        window: queries at the end of the prompt that vote.
        kernel: positions smoothed over, odd; 1 for none.
        pooling: how they are smoothed.
    """

    window: int
    kernel: int
    pooling: Literal["mean", "max"]

    def __post_init__(self) -> None:
        """Refuse windows and kernels that mean nothing."""
        if self.window < 1:
            raise ValueError(f"strategy.scorer.window must be at least 1; got {self.window}.")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"strategy.scorer.kernel must be odd and at least 1; got {self.kernel}.")
        if self.pooling not in ("mean", "max"):
            raise ValueError(f"strategy.scorer.pooling must be mean or max; got {self.pooling!r}.")

    def voters(self, tokens: int) -> int:
        """Return how many queries at the end of the prompt vote."""
        return self.window

    def prompt(self, view: PromptView) -> Tensor:
        """Return the window's attention, smoothed over the entries before the window [B, G, n]."""
        received = view.attention_received(last=self.window)
        before = max(0, received.shape[-1] - self.window)
        prefix = received[..., :before]
        if before == 0 or self.kernel == 1:
            return received
        if self.pooling == "mean":
            pooled = torch.nn.functional.avg_pool1d(prefix, self.kernel, stride=1, padding=self.kernel // 2)
        else:
            pooled = torch.nn.functional.max_pool1d(prefix, self.kernel, stride=1, padding=self.kernel // 2)
        return torch.cat([pooled, received[..., before:]], dim=-1)
