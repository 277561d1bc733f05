"""Neighbours that are alike merge into the one of them that matters most."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.cache.plan import LayerPlan, score_dtype
from kvbench.cache.slots import Slots
from kvbench.cache.store import take
from kvbench.cache.views import Leaving, Merged
from kvbench.strategies.evicted.drop import EvictedDefaults
from kvbench.strategies.evicted.nearest import BLOCK, weighted_sums


@dataclass(frozen=True, kw_only=True)
class RunMerge(EvictedDefaults):
    """Merges what leaves of a run of like keys into the best scored entry of the run that stays, per KV head.

    A run is as long as each key is more like the next one than the threshold. An entry weighs as much as a Gaussian
    of its key's distance from that of the pivot says, which itself weighs 1; the width of the Gaussian is the mean
    distance in the run over the square root of 2. Entries that leave while decoding are dropped.

    Source: Wang et al. (KVMerger), arXiv:2407.08454.
    Deviates: the budget is exact: as many entries stay as it says, the best scored ones, and a run of which none
        stays is dropped, where the paper merges every run and gets the budget that follows.

    Args:
        threshold: cosine similarity of neighbouring keys above which they are of one run.
    """

    threshold: float

    def __post_init__(self) -> None:
        """Refuse thresholds that mean nothing."""
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"strategy.evicted.threshold must be between -1 and 1; got {self.threshold}.")

    def at_prompt_end(self, leaving: Leaving) -> Merged:
        """Merge what leaves of each run into its pivot."""
        keys, at = leaving.keys, leaving.index.clamp(min=0)
        kept, values = take(keys, at), take(leaving.values, at)
        target = self._pivots(leaving)
        merges = leaving.gone() & (target >= 0)
        target = target.clamp(min=0)
        distance = _distances(keys, kept, target) * merges
        none = torch.zeros(kept.shape[:3], dtype=distance.dtype, device=distance.device)
        count = none.scatter_add(2, target, merges.to(none.dtype))
        mean = none.scatter_add(2, target, distance) / (count + 1)  # the pivot is of the run, at no distance
        away = (distance / mean.gather(2, target)).nan_to_num(nan=0.0)
        weight = (-away.square()).exp() * merges
        whole = none.scatter_add(2, target, weight) + 1
        merged = []
        for old, entries in ((kept, keys), (values, leaving.values)):
            sums = weighted_sums(entries, target, weight, at.shape[2])
            new = ((old.to(sums.dtype) + sums) / whole[..., None]).to(old.dtype)
            merged.append(torch.where(count[..., None] > 0, new, old))
        return Merged(keys=merged[0], values=merged[1])

    def while_decoding(self, slots: Slots, victims: Tensor, plan: LayerPlan) -> None:
        """Leave the others as they are."""

    def _pivots(self, leaving: Leaving) -> Tensor:
        """Return which of the kept entries is the pivot of each entry's run [B, G, n], -1 where there is none."""
        heads = leaving.keys.shape[1]
        index = leaving.index.expand(-1, heads, -1)
        exists, at = index >= 0, index.clamp(min=0)
        run = self._runs(leaving.keys, leaving.position)
        score, mine = leaving.score.expand(-1, heads, -1).gather(2, at), run.gather(2, at)
        best = torch.full(run.shape, -torch.inf, dtype=score.dtype, device=score.device)
        best.scatter_reduce_(2, mine, score.masked_fill(~exists, -torch.inf), "amax")
        rank = torch.arange(at.shape[2], device=at.device).expand(at.shape)
        is_pivot = exists & (score == best.gather(2, mine))  # of equal ones the last
        pivot = torch.full_like(run, -1).scatter_reduce_(2, mine, rank.masked_fill(~is_pivot, -1), "amax")
        return pivot.gather(2, run)

    def _runs(self, keys: Tensor, position: Tensor) -> Tensor:
        """Return which run each entry is of [B, G, n], counted from 0."""
        dtype = score_dtype(keys.dtype)
        links = [torch.zeros((*keys.shape[:2], 1), dtype=torch.bool, device=keys.device)]
        for start in range(0, keys.shape[2] - 1, BLOCK):
            block = torch.nn.functional.normalize(keys[:, :, start : start + BLOCK + 1].to(dtype), dim=-1)
            links.append((block[:, :, 1:] * block[:, :, :-1]).sum(dim=-1) > self.threshold)
        begins = ~torch.cat(links, dim=2) | (position <= 0)  # nor does padding link with anything
        return begins.long().cumsum(dim=2) - 1


def _distances(keys: Tensor, kept: Tensor, target: Tensor) -> Tensor:
    """Return how far keys [B, G, n, D] are from the kept one that is their target [B, G, n], a block at a time."""
    dtype = score_dtype(keys.dtype)
    parts = []
    for start in range(0, keys.shape[2], BLOCK):
        block = slice(start, start + BLOCK)
        away = keys[:, :, block].to(dtype) - take(kept, target[:, :, block]).to(dtype)
        parts.append(torch.linalg.vector_norm(away, dim=-1))
    return torch.cat(parts, dim=2)
