"""Entries matter by the attention they receive and by how much that changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.cache.protocols import Observation, PromptView
from kvbench.strategies.selection.scorer import ScorerDefaults


@dataclass(frozen=True, kw_only=True)
class Fluctuation(ScorerDefaults):
    """Mean plus weighted variance of the attention from the prompt's last queries; while decoding the latest query's.

    Source: Qin et al. (CAKE), arXiv:2503.12491; as in antgroup/cakekv.
    Deviates: while decoding the scores are not smoothed over neighbours, whose slots need not be next to each other.

    Args:
        window: queries at the end of the prompt that vote.
        kernel: positions smoothed over, odd; 1 for none.
        variance_weight: factor of the variance.
    """

    needs_weights: ClassVar[bool] = True

    window: int
    kernel: int
    variance_weight: float

    def __post_init__(self) -> None:
        """Refuse windows, kernels and factors that mean nothing."""
        if self.window < 1:
            raise ValueError(f"strategy.scorer.window must be at least 1; got {self.window}.")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"strategy.scorer.kernel must be odd and at least 1; got {self.kernel}.")
        if not self.variance_weight >= 0:
            raise ValueError(f"strategy.scorer.variance_weight must be 0 or more; got {self.variance_weight}.")

    def voters(self, tokens: int) -> int:
        """Return how many queries at the end of the prompt vote."""
        return self.window

    def prompt(self, view: PromptView) -> Tensor:
        """Return the smoothed scores of the entries before the window, and 0 for those in it [B, G, n]."""
        mean, variance = window_moments(view, self.window)
        score = (mean + self.variance_weight * variance).mean(dim=2)
        before = max(0, score.shape[-1] - self.window)
        if before == 0:
            return score
        smooth = torch.nn.functional.avg_pool1d(score[..., :before], self.kernel, stride=1, padding=self.kernel // 2)
        return torch.nn.functional.pad(smooth, (0, score.shape[-1] - before))

    def observe(self, seen: Observation) -> None:
        """Replace the scores by the group's mean weight."""
        torch.mean(seen.weights, dim=2, out=seen.score)


def window_moments(view: PromptView, window: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance of the attention each entry receives from the last queries, both [B, G, H / G, n].

    The variance is that of a sample (divided by one less than there are queries), 0 for a single query.
    """
    total = votes = squares = torch.zeros((), device=view.keys.device)
    for weights, at in view.attention(last=window):
        total = total + weights.sum(dim=3)
        votes = votes + (at >= 0).sum(dim=-1)[:, None, None, None]
    mean = total / votes
    for weights, at in view.attention(last=window):
        apart = (weights - mean[:, :, :, None]).masked_fill((at < 0)[:, None, None, :, None], 0.0)
        squares = squares + apart.square().sum(dim=3)
    return mean, squares / (votes - 1).clamp(min=1)
