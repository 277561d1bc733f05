"""Entries matter by the worst that can happen without them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.cache.plan import score_dtype
from kvbench.cache.views import PromptView
from kvbench.strategies.selection.critical import projected_size
from kvbench.strategies.selection.scorer import ScorerDefaults


@dataclass(frozen=True, kw_only=True)
class Defensive(ScorerDefaults):
    """The most attention that any of the last queries pays, never below the head's mean, times the projected value.

    The entries that take most attention on average come first, as many as stay below a part of the whole.

    Source: Feng et al. (DefensiveKV), arXiv:2510.13334; stages as in FFY0/DefensiveKV.
    Deviates: the part is that of the attention on entries before the window (the authors' code corrects it by what it
        takes for the window's own); the largest score is sought per row, not per batch.

    Args:
        window: queries at the end of the prompt that vote.
        kernel: positions smoothed over, odd; 1 for none.
        certain: part of the mean attention whose entries come first.
        num_recent: most recent tokens that stay anyway, as the selector has it.
    """

    window: int
    kernel: int
    certain: float
    num_recent: int

    def __post_init__(self) -> None:
        """Refuse windows, kernels and parts that mean nothing."""
        if self.window < 1:
            raise ValueError(f"strategy.scorer.window must be at least 1; got {self.window}.")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"strategy.scorer.kernel must be odd and at least 1; got {self.kernel}.")
        if not 0 <= self.certain <= 1:
            raise ValueError(f"strategy.scorer.certain must be between 0 and 1; got {self.certain}.")

    def voters(self, tokens: int) -> int:
        """Return how many queries at the end of the prompt vote."""
        return self.window

    def prompt(self, view: PromptView) -> Tensor:
        """Return the scores of the entries before the window, and 0 for those in it [B, G, n].

        Raises:
            ValueError: if the model's output projection is not known.
        """
        output = view.output("strategy/scorer=defensive")
        entries = view.keys.shape[2]
        before = max(0, entries - self.window)
        held = view.position[..., :before] >= 0
        largest, mean = self._attention(view, held)
        if before == 0:
            return mean.new_zeros((*mean.shape[:2], entries))
        count = held.sum(dim=-1, keepdim=True).clamp(min=1)
        risk = torch.maximum(largest, largest.sum(dim=-1, keepdim=True) / count)
        size = projected_size(view.values[:, :, :before], output)
        score = risk * size / size.sum(dim=1, keepdim=True).clamp(min=torch.finfo(size.dtype).tiny)
        score = score.masked_fill(~held, 0.0)
        first = score.amax(dim=(1, 2), keepdim=True)
        score = torch.where(self._certain(mean, view.budget), first, score)
        return torch.nn.functional.pad(score, (0, entries - before))

    def _attention(self, view: PromptView, held: Tensor) -> tuple[Tensor, Tensor]:
        """Return the most attention from any query and head of a group, smoothed, and the sum, both [B, G, before]."""
        shape, dtype = (*view.keys.shape[:2], held.shape[2]), score_dtype(view.keys.dtype)
        largest, total = (torch.zeros(shape, dtype=dtype, device=held.device) for _ in range(2))
        for weights, _ in view.attention(last=self.window):
            prefix = weights[..., : held.shape[2]]
            columns = slice(0, prefix.shape[-1])
            total[..., columns] += prefix.mean(dim=2).sum(dim=2)
            if held.shape[2] > 0:
                smooth = self._smooth(prefix, held[:, :, None, None, columns])
                torch.maximum(largest[..., columns], smooth.amax(dim=(2, 3)), out=largest[..., columns])
        return largest, total

    def _smooth(self, weights: Tensor, held: Tensor) -> Tensor:
        """Return weights [..., n] smoothed over neighbours that are held, each row with the sum it had."""
        near = torch.nn.functional.pad(weights, (self.kernel // 2, self.kernel // 2)).unfold(-1, self.kernel, 1)
        smooth = near.mean(dim=-1).mul_(held)
        smooth_sum = smooth.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        return smooth * (weights.sum(dim=-1, keepdim=True) / smooth_sum)

    def _certain(self, mean: Tensor, budget: tuple[int, ...]) -> Tensor:
        """Return which entries take most attention on average and together less than the part [B, G, n]."""
        share = mean / mean.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(mean.dtype).tiny)
        ordered, order = share.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(mean.shape[-1], device=mean.device)
        most = torch.tensor(budget, device=mean.device)[:, None, None] - self.num_recent
        comes_first = (ordered.cumsum(dim=-1) < self.certain) & (rank < most)
        return torch.zeros_like(comes_first).scatter(-1, order, comes_first)
