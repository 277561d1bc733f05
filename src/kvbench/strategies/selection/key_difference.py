"""Entries with keys unlike the others matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.cache.plan import score_dtype
from kvbench.cache.views import PromptView
from kvbench.strategies.selection.scorer import ScorerDefaults

_SMALL = 1e-12  # keys of no size have no direction, and no cosine


@dataclass(frozen=True, kw_only=True)
class KeyDifference(ScorerDefaults):
    """The negative cosine between a key, as it is rotated, and the mean direction of all keys of its head.

    Scored again whenever entries leave while decoding, against the mean direction of what is then held.

    Source: Park et al. (KeyDiff), arXiv:2504.15364; the score is that of KeyDiffPress in NVIDIA/kvpress.
    Deviates: the whole prompt is read before anything leaves, where the paper holds the budget block by block; the
        mean direction is therefore that of all keys seen and not of those that survived earlier blocks.
    """

    scores_again: ClassVar[bool] = True

    def voters(self, tokens: int) -> int:
        """Return 1, the fewest queries there can be; none of them is asked."""
        return 1

    def prompt(self, view: PromptView) -> Tensor:
        """Return the negative cosines [B, G, n]; entries that are not there count for nothing."""
        is_there = (view.position >= 0).expand(-1, view.keys.shape[1], -1)
        heads = zip(view.keys.unbind(dim=1), is_there.unbind(dim=1), strict=True)
        return torch.stack([_unlike_the_mean(keys, there) for keys, there in heads], dim=1)


def _unlike_the_mean(keys: Tensor, is_there: Tensor) -> Tensor:
    """Return the negative cosines of the keys of one head [B, n, D] to the mean direction of those that are there."""
    keys = keys.to(score_dtype(keys.dtype))
    norm = torch.linalg.vector_norm(keys, dim=-1).clamp(min=_SMALL)
    anchor = (is_there.to(keys.dtype) / norm)[:, None] @ keys
    size = torch.linalg.vector_norm(anchor, dim=-1).clamp(min=_SMALL)
    cosine: Tensor = (keys @ anchor.transpose(-1, -2))[..., 0] / norm / size
    return -cosine
