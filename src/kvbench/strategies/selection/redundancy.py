"""Entries matter that are attended to and unlike the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d, normalize

from kvbench.cache.plan import score_dtype
from kvbench.cache.views import PromptView
from kvbench.strategies.selection.scorer import ScorerDefaults


@dataclass(frozen=True, kw_only=True)
class Redundancy(ScorerDefaults):
    """Importance to the latest queries, less how much an entry's key repeats what other keys say.

    Importance: logits of the latest queries, the largest over a group, through a softmax over the entries before
    those queries, averaged over them and smoothed by the largest neighbour. Redundancy: the mean cosine to all
    other keys, where each key overlooks the latest one that is like it, through a softmax over entries.
    Scored again whenever entries leave while decoding.

    Source: Cai et al. (R-KV), arXiv:2505.24133; details as in the authors' code.
    Deviates: a key that is like no other overlooks none (the authors' code overlooks the first entry); neighbours
        are those in order of position (theirs are in order of score after the first eviction).

    Args:
        window: latest queries that vote.
        kernel: entries smoothed over, odd; 1 for none.
        importance_share: weight of importance; the rest is that of redundancy.
        threshold: cosine above which keys are alike.
    """

    scores_again: ClassVar[bool] = True

    window: int
    kernel: int
    importance_share: float
    threshold: float

    def __post_init__(self) -> None:
        """Refuse windows, kernels and weights that mean nothing."""
        if self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(
                f"strategy.scorer needs window >= 1 and kernel odd and >= 1; got window={self.window}, "
                f"kernel={self.kernel}."
            )
        if not 0 <= self.importance_share <= 1 or not -1 <= self.threshold <= 1:
            raise ValueError(
                f"strategy.scorer needs importance_share between 0 and 1 and threshold between -1 and 1; got "
                f"importance_share={self.importance_share}, threshold={self.threshold}."
            )

    def voters(self, tokens: int) -> int:
        """Return how many queries vote."""
        return self.window

    def prompt(self, view: PromptView) -> Tensor:
        """Return importance less redundancy, weighted [B, G, n]."""
        position = view.position.expand(-1, view.keys.shape[1], -1)
        importance = self._importance(view, position)
        heads = zip(view.keys.unbind(dim=1), position.unbind(dim=1), strict=True)
        block = max(1, view.keys.shape[1] * view.keys.shape[3] // 4)  # so what is made stays below the keys
        redundancy = torch.stack([self._redundancy(keys, at, block) for keys, at in heads], dim=1)
        return self.importance_share * importance - (1 - self.importance_share) * redundancy

    def _importance(self, view: PromptView, position: Tensor) -> Tensor:
        """Return the votes for the entries before the window, 0 for those in it [B, G, n]."""
        query, is_voter = view.query[:, :, -self.window :], view.query_position[:, -self.window :] >= 0
        wide = score_dtype(query.dtype)
        before = (position >= 0) & (position <= position.amax(dim=-1, keepdim=True) - self.window)
        rows = (query * view.scale).unflatten(1, (view.keys.shape[1], -1)).flatten(2, 3)
        logits = torch.matmul(rows, view.keys.transpose(-1, -2)).to(wide)
        logits = logits.unflatten(2, (-1, query.shape[2])).amax(dim=2).masked_fill(~before[:, :, None], -torch.inf)
        weights = logits.softmax(dim=-1).nan_to_num(0.0) * is_voter[:, None, :, None]  # nan: nothing is before it
        votes = weights.sum(dim=2) / is_voter.sum(dim=-1)[:, None, None]
        order = view.position.argsort(dim=-1).expand_as(position)
        near = max_pool1d(votes.gather(2, order), self.kernel, stride=1, padding=self.kernel // 2)
        return torch.zeros_like(votes).scatter(2, order, near) * before

    def _redundancy(self, keys: Tensor, position: Tensor, block: int) -> Tensor:
        """Return how much each key of a head repeats others [B, n], so many keys against all before at a time."""
        order = position.argsort(dim=-1)
        row, own = (torch.arange(size, device=keys.device) for size in keys.shape[:2])
        row = row[:, None]
        is_there = position.gather(1, order) >= 0
        unit = normalize(keys[row, order].to(score_dtype(keys.dtype)), dim=-1).mul_(is_there[..., None])
        total = (unit.sum(dim=1, keepdim=True) - unit).mul_(unit).sum(dim=-1)  # the cosines to all others
        column = self._latest_alike(unit, (own + 1) * is_there, block) - 1
        counts = (column >= 0) & (column != own)
        column = column.clamp_(min=0)
        overlooked = (unit * unit[row, column]).sum(dim=-1).mul_(counts)
        total = total.scatter_add(1, column, overlooked.neg_())
        mean = (total / is_there.sum(dim=-1, keepdim=True)).masked_fill_(~is_there, -torch.inf)
        return torch.zeros_like(mean).scatter_(1, order, mean.softmax(dim=-1))

    def _latest_alike(self, unit: Tensor, place: Tensor, block: int) -> Tensor:
        """Return the place of the latest key that is like each one, itself apart [B, n]; 0 for none.

        Cosines are the same both ways: those of a block with all keys before it serve both.

        Args:
            unit: directions of keys in order of position [B, n, D].
            place: counted from 1 [B, n]; 0 where there is no key.
            block: so many keys at a time.
        """
        place = place.to(unit.dtype)
        latest = torch.zeros_like(place)
        for start in range(0, unit.shape[1], block):
            stop = min(start + block, unit.shape[1])
            cosine = unit[:, :stop] @ unit[:, start:stop].transpose(-1, -2)
            cosine.diagonal(offset=-start, dim1=1, dim2=2).zero_()
            alike = cosine.gt_(self.threshold)
            so_far = latest[:, :stop]
            torch.amax(alike * place[:, :stop, None], dim=1, out=so_far[:, start:])
            torch.maximum(so_far, alike.mul_(place[:, None, start:stop]).amax(dim=2), out=so_far)
        return latest.long()
