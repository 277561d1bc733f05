"""Entries matter by the attention they receive and by how much that changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.cache.plan import score_dtype
from kvbench.cache.views import Observation, PromptView
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
    batch, groups, entries, _ = view.keys.shape
    shape, dtype = (batch, groups, view.query.shape[1] // groups, entries), score_dtype(view.keys.dtype)
    mean, squares = (torch.zeros(shape, dtype=dtype, device=view.keys.device) for _ in range(2))
    votes = torch.zeros(batch, 1, 1, 1, dtype=dtype, device=view.keys.device)
    for weights, at in view.attention(last=window):
        voters = (at >= 0).to(dtype)[:, None, None, :, None]
        more = voters.sum(dim=3)
        total = votes + more
        ours = torch.nn.functional.pad(weights.sum(dim=3) / more.clamp(min=1), (0, entries - weights.shape[-1]))
        apart = (weights - ours[..., None, : weights.shape[-1]]).square_().mul_(voters).sum(dim=3)
        squares[..., : weights.shape[-1]] += apart
        squares += (ours - mean).square() * (votes * more / total.clamp(min=1))  # two samples as one
        mean += (ours - mean) * (more / total.clamp(min=1))
        votes = total
    return mean, squares / (votes - 1).clamp(min=1)
