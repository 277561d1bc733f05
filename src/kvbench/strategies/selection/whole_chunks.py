"""Chunks of neighbouring entries stay or leave together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.strategies.selection.selector import Protected


@dataclass(frozen=True, kw_only=True)
class WholeChunks(Protected):
    """At the prompt's end whole chunks stay, those with the best scores in them, beside the protected entries.

    More recent entries stay where the budget is not all chunks. What leaves are then whole chunks, in order, and
    perhaps the first entries of one that the recent ones begin in.

    Source: Sun et al. (ShadowKV), arXiv:2410.21465, sec. 4; https://github.com/bytedance/ShadowKV.

    Args:
        size: tokens of a chunk, counted from the row's first one.
        num_sink: first tokens, whole chunks of them.
        num_recent: most recent tokens kept at least.
        recent_share: the same as a fraction of the budget; the larger of the two counts.
    """

    size: int

    def __post_init__(self) -> None:
        """Refuse chunks that mean nothing, and sinks that cut one."""
        super().__post_init__()
        if self.size < 1 or self.num_sink % self.size > 0:
            raise ValueError(
                f"strategy.selector.size must be at least 1, and strategy.selector.num_sink a multiple of it; got "
                f"size={self.size}, num_sink={self.num_sink}."
            )

    def recent(self, budget: int) -> int:
        """Return how many recent entries a budget protects: as many as leave whole chunks of it."""
        least = super().recent(budget)
        return least + (budget - self.num_sink - least) % self.size

    def priority(self, score: Tensor, position: Tensor, budget: Sequence[int]) -> Tensor:
        """Return the best score of each entry's chunk [B, S, n], minus infinite where protected entries cut it."""
        recent = torch.tensor([self.recent(entries) for entries in budget], device=score.device)[:, None, None]
        chunk = (position.clamp(min=0) // self.size).long().expand_as(score)
        there = score.masked_fill(position < 0, -torch.inf)
        empty = score.new_full((*score.shape[:2], -(-score.shape[2] // self.size)), -torch.inf)
        best = empty.scatter_reduce(2, chunk, there, "amax").gather(2, chunk)
        is_cut = (chunk + 1) * self.size > position.amax(dim=-1, keepdim=True) + 1 - recent
        return super().priority(best.masked_fill(is_cut, -torch.inf), position, budget)
