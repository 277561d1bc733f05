"""Entries matter that the mean key of their chunk does not stand for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.cache.plan import score_dtype
from kvbench.cache.views import PromptView
from kvbench.strategies.selection.scorer import ScorerDefaults


@dataclass(frozen=True, kw_only=True)
class ChunkOutlier(ScorerDefaults):
    """The negative cosine between a key, as it is rotated, and the mean key of its chunk.

    Source: Sun et al. (ShadowKV), arXiv:2410.21465, sec. 4; https://github.com/bytedance/ShadowKV.
    Deviates: scores are those of entries; that a chunk is worth its worst one says strategy/selector=whole_chunks.

    Args:
        size: tokens of a chunk, counted from the row's first one.
    """

    size: int

    def __post_init__(self) -> None:
        """Refuse chunks that mean nothing."""
        if self.size < 1:
            raise ValueError(f"strategy.scorer.size must be at least 1; got {self.size}.")

    def prompt(self, view: PromptView) -> Tensor:
        """Return the negative cosines [B, G, n]."""
        position = view.position[:, 0].long()
        length = (position >= 0).sum(dim=-1, keepdim=True)
        chunks = -(-position.shape[1] // self.size)
        at = torch.arange(chunks * self.size, device=position.device).expand(len(position), -1)
        column = (at + position.shape[1] - length).clamp(max=position.shape[1] - 1)
        is_there = (at < length).unflatten(1, (chunks, self.size))[..., None]

        def cosines(keys: Tensor) -> Tensor:
            """Return the cosines of the keys of one head [B, n, D] to the means of their chunks."""
            wide = keys.to(score_dtype(keys.dtype)).gather(1, column[..., None].expand(-1, -1, keys.shape[2]))
            wide = wide.unflatten(1, (chunks, self.size)) * is_there
            mean = wide.sum(dim=2, keepdim=True)  # cosines do not ask how many there are
            found = torch.nn.functional.cosine_similarity(wide, mean, dim=-1).flatten(1)
            return found.gather(1, position.clamp(min=0))

        return -torch.stack([cosines(keys) for keys in view.keys.unbind(dim=1)], dim=1)
