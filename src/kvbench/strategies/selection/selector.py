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
        counts = list(map(min, budget, lengths))
        kept = best(self.priority(score, position, budget), counts)
        return in_order(kept, max(counts)), min(counts) < max(counts)

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


def best(priority: Tensor, counts: Sequence[int]) -> Tensor:
    """Return whether entries are among the best of theirs [B, S, n]; of equals the later ones are.

    Args:
        priority: [B, S, n].
        counts: how many, of each row.
    """
    number = torch.tensor(counts, device=priority.device)[:, None, None]
    first = priority.topk(max(1, *counts), dim=-1).values
    least = first.gather(-1, (number - 1).clamp(min=0).expand(-1, priority.shape[1], -1))
    above, equal = priority > least, priority == least
    later = equal.flip(-1).cumsum(dim=-1).flip(-1)
    return above | (equal & (later <= number - above.sum(dim=-1, keepdim=True)))


def in_order(kept: Tensor, most: int) -> Tensor:
    """Return the indices of kept entries [B, S, n] in order [B, S, most], -1 where a row keeps fewer."""
    index = kept.new_full((*kept.shape[:2], most + 1), -1, dtype=torch.int64)
    place = (kept.cumsum(dim=-1) - 1).masked_fill(~kept, most)
    own = torch.arange(kept.shape[-1], device=kept.device).expand_as(place)
    return index.scatter_(2, place, own)[..., :most]
