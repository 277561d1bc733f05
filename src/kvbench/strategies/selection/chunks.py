"""Entries matter as the run of text they are in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvbench.cache.protocols import Scorer
from kvbench.cache.views import PromptView
from kvbench.strategies.selection.scorer import ScorerDefaults
from kvbench.strategies.selection.wrapping import voters_of


@dataclass(frozen=True, kw_only=True)
class ChunkMean(ScorerDefaults):
    """The mean over a chunk of another scorer's scores, summed over heads: one kept set for the whole layer.

    Source: Liu et al. (ChunkKV), arXiv:2502.00299; chunks as ChunkKVPress in NVIDIA/kvpress forms them.
    Deviates: the budget counts entries, so the last chunk that stays is cut and its first entries leave (kvpress
        keeps whole chunks, and those of the batch's first row for all rows); protected entries stay without lifting
        the rest of their chunk; layers do not reuse each other's choice; a base that looks at decode steps is asked
        at the prompt's end only.

    Args:
        base: scores single entries.
        length: tokens of a chunk, counted from the row's first one.
    """

    per_head: ClassVar[bool] = False

    base: Scorer
    length: int

    def __post_init__(self) -> None:
        """Refuse chunks that mean nothing."""
        if self.length < 1:
            raise ValueError(f"strategy.scorer.length must be at least 1; got {self.length}.")

    def voters(self, tokens: int) -> int:
        """Return how many queries the base needs."""
        return voters_of(self.base, tokens)

    def prompt(self, view: PromptView) -> Tensor:
        """Return the mean of each entry's chunk [B, 1, n]."""
        is_there = view.position >= 0
        score = self.base.prompt(view).sum(dim=1, keepdim=True).masked_fill(~is_there, 0.0)
        chunk = (view.position.clamp(min=0) // self.length).long()
        size = (*score.shape[:2], (score.shape[2] - 1) // self.length + 1)
        total = score.new_zeros(size).scatter_add(2, chunk, score)
        entries = score.new_zeros(size).scatter_add(2, chunk, is_there.to(score.dtype))
        return (total / entries.clamp(min=1)).gather(2, chunk)

    def entry(self, key: Tensor, position: Tensor, layer: int) -> Tensor:
        """Return a score of zero [B, 1, 1]: there is no chunk yet."""
        return super().entry(key, position, layer)[:, :1]
