"""Which entries stay, given their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

_ALWAYS = float("inf")


@dataclass(frozen=True, kw_only=True)
class Protected:
    """The first and the most recent entries stay; the best scores take what is left of the budget.

    Ties go to the higher position at the end of the prompt and to the later slot while decoding.

    Args:
        num_sink: first tokens, never evicted.
        num_recent: most recent tokens kept at least.
        recent_share: the same as a fraction of the budget; the larger of the two counts.
    """

    num_sink: int
    num_recent: int
    recent_share: float

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.num_sink < 0 or self.num_recent < 0 or not 0 <= self.recent_share <= 1:
            raise ValueError(
                f"strategy.selector needs num_sink >= 0, num_recent >= 0 and recent_share between 0 and 1; got "
                f"num_sink={self.num_sink}, num_recent={self.num_recent}, recent_share={self.recent_share}."
            )

    def of_layer(self, layer: int) -> Protected:
        """Return the selector of one layer: the same for all of them."""
        return self

    def recent(self, budget: int) -> int:
        """Return how many recent entries a budget protects."""
        return max(self.num_recent, int(Fraction(str(self.recent_share)) * budget))

    def keep(
        self, score: Tensor, position: Tensor, budget: Sequence[int], lengths: Sequence[int]
    ) -> tuple[Tensor, bool]:
        """Choose entries at the end of the prompt; see `kvbench.cache.plan.Selector`."""
        device, columns = score.device, score.shape[-1]
        priority = self.priority(score, position, budget)
        order = columns - 1 - priority.flip(-1).sort(dim=-1, descending=True, stable=True).indices
        counts = list(map(min, budget, lengths))
        rank = torch.arange(max(counts), device=device)
        spare = rank >= torch.tensor(counts, device=device)[:, None, None]
        index = order[..., : max(counts)].masked_fill(spare, columns).sort(dim=-1).values
        return index.masked_fill(index == columns, -1), min(counts) < max(counts)

    def priority(self, score: Tensor, position: Tensor, budget: Sequence[int]) -> Tensor:
        """Return the scores [B, S, n], infinite where entries are protected and minus infinite at padding."""
        recent = torch.tensor([self.recent(b) for b in budget], device=score.device)[:, None, None]
        newest = position.amax(dim=-1, keepdim=True)
        stays = (position < self.num_sink) | (position > newest - recent)
        return score.masked_fill(stays, _ALWAYS).masked_fill(position < 0, -_ALWAYS)

    def victims(
        self,
        score: Tensor,
        position: Tensor,
        newest: Tensor | int,
        recent: Tensor | int,
        out: Tensor,
        *,
        has_empty: bool,
    ) -> None:
        """Choose the slots to free; see `kvbench.cache.plan.Selector`."""
        stays = [position > newest - recent] if isinstance(recent, Tensor) or recent > 0 else []
        if self.num_sink > 0 or has_empty:
            stays.append(position < self.num_sink)
        for mask in stays:
            score = score.masked_fill(mask, _ALWAYS)
        if out.shape[-1] == 1:
            torch.argmin(score, dim=-1, keepdim=True, out=out)
        else:
            out.copy_(score.topk(out.shape[-1], dim=-1, largest=False, sorted=False).indices)
