"""Entries that leave merge into the kept entry whose key is most like theirs."""

from __future__ import annotations

from dataclasses import dataclass
from math import e
from typing import Literal

import torch
from torch import Tensor

from kvbench.cache.plan import LayerPlan, score_dtype
from kvbench.cache.slots import Slots
from kvbench.cache.store import take
from kvbench.cache.views import Leaving, Merged
from kvbench.strategies.evicted.drop import EvictedDefaults
from kvbench.types import LayerShape

BLOCK = 128  # entries of a prompt that are compared with the kept ones at once
_OWN_AND_WHOLE = {  # the kept entry's own weight and what is divided by: constant, per merged weight, per merged entry
    "exponential": ((e, 0.0, 0.0), (e, 1.0, 0.0)),
    "similarity": ((1.0, 0.0, 0.0), (1.0, 0.0, 1.0)),
    "mean": ((1.0, 0.0, 0.0), (1.0, 0.0, 1.0)),
    "pivot": ((1.0, 1.0, 0.0), (1.0, 0.0, 1.0)),
}


@dataclass(frozen=True, kw_only=True)
class NearestMerge(EvictedDefaults):
    """Merges keys and values into the kept entry of the highest cosine similarity of keys, per KV head.

    An entry less like any kept one than the threshold is dropped. The merged entry keeps its position.

    Source: Wan et al. (D2O), arXiv:2406.13035 (weights "exponential", threshold "mean") and their code
        ("similarity"); Wan et al. (LOOK-M), arXiv:2406.18139 ("mean", "pivot", "similarity").
    Deviates: D2O's threshold is one per KV head (the code takes the mean over the heads of a layer) and starts at the
        end of the prompt; LOOK-M's merging by mean merges all that leave (the code confuses two lists of them).

    Args:
        weights: "exponential" weighs an entry by e to its similarity and the kept one by e; "mean" by 1 each; "pivot"
            takes the mean of the kept entry and of its midpoints with those merged into it; "similarity" the mean of
            the kept entry and of the others times their similarity.
        threshold: "none", or "mean" of the similarities of all that left, as a running mean while decoding.
        memory: what the running mean keeps of itself each time entries leave.
    """

    weights: Literal["exponential", "similarity", "mean", "pivot"]
    threshold: Literal["none", "mean"]
    memory: float

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if self.weights not in _OWN_AND_WHOLE:
            raise ValueError(
                f"strategy.evicted.weights must be exponential, similarity, mean or pivot; got {self.weights!r}."
            )
        if self.threshold not in ("none", "mean"):
            raise ValueError(f"strategy.evicted.threshold must be none or mean; got {self.threshold!r}.")
        if not 0 <= self.memory < 1:
            raise ValueError(f"strategy.evicted.memory must be at least 0 and below 1; got {self.memory}.")

    def state_width(self, shape: LayerShape) -> int:
        """Return 2, the threshold and whether there is one yet, or 0 without a threshold."""
        return 2 if self.threshold == "mean" else 0

    def at_prompt_end(self, leaving: Leaving) -> Merged:
        """Merge what leaves into what stays, all at once and by the keys as they were."""
        at, gone = leaving.index.clamp(min=0), leaving.gone().expand(-1, leaving.keys.shape[1], -1)
        kept = take(leaving.keys, at)
        similarity, target = _most_similar(leaving.keys, kept, leaving.index >= 0)
        state = None
        if self.threshold == "mean":
            state = self._threshold(similarity.new_zeros((*similarity.shape[:2], 2)), similarity, gone)
            gone = gone & (similarity >= state[..., :1])
        weight = self._weight(similarity) * gone
        total, count = (
            torch.zeros(kept.shape[:3], dtype=weight.dtype, device=weight.device).scatter_add_(2, target, row)
            for row in (weight, gone.to(weight.dtype))
        )
        values = take(leaving.values, at)
        merged = [
            self._merged(old, weighted_sums(entries, target, weight, at.shape[2]), total, count)
            for old, entries in ((kept, leaving.keys), (values, leaving.values))
        ]
        return Merged(keys=merged[0], values=merged[1], state=state)

    def while_decoding(self, slots: Slots, victims: Tensor, plan: LayerPlan) -> None:
        """Merge the victims into what else is held, in place."""
        keys, values = slots.keys.read(slots.filled), slots.values.read(slots.filled)
        victims = victims.expand(-1, keys.shape[1], -1)
        held = (slots.position.narrow(2, 0, slots.filled) >= 0).expand(-1, keys.shape[1], -1)
        similarity, target = _most_similar_slot(keys, victims, held.scatter(2, victims, False))
        merges = torch.ones_like(target, dtype=torch.bool)
        if slots.state is not None:
            slots.state.copy_(self._threshold(slots.state, similarity, merges))
            merges = similarity >= slots.state[..., :1]
        weight, counted = self._weight(similarity) * merges, merges.to(similarity.dtype)
        together = (target[..., :, None] == target[..., None, :]).to(similarity.dtype)  # victims of the same target
        total, count = (together @ weight[..., None])[..., 0], (together @ counted[..., None])[..., 0]
        for payload, entries in ((slots.keys, keys), (slots.values, values)):
            sums = together @ (take(entries, victims).to(weight.dtype) * weight[..., None])
            payload.scatter(target, self._merged(take(entries, target), sums, total, count))

    def _threshold(self, state: Tensor, similarity: Tensor, gone: Tensor) -> Tensor:
        """Return the new threshold and 1 [B, G, 2], or the old state where nothing left."""
        number = gone.sum(dim=2, keepdim=True)
        mean = (similarity * gone).sum(dim=2, keepdim=True) / number.clamp(min=1)
        old, has_old = state[..., :1], state[..., 1:]
        running = torch.where(has_old > 0, old.lerp(mean, 1 - self.memory), mean)
        new = torch.cat([running, torch.ones_like(running)], dim=2)
        return torch.where(number > 0, new, state)

    def _weight(self, similarity: Tensor) -> Tensor:
        """Return the weight an entry is merged with."""
        if self.weights == "exponential":
            return similarity.exp()
        if self.weights == "similarity":
            return similarity
        return torch.full_like(similarity, 0.5 if self.weights == "pivot" else 1.0)

    def _merged(self, kept: Tensor, sums: Tensor, total: Tensor, count: Tensor) -> Tensor:
        """Return kept entries [B, G, k, D] with weighted sums merged in; untouched where nothing merged."""
        own, whole = (a + b * total + c * count for a, b, c in _OWN_AND_WHOLE[self.weights])
        merged = (kept.to(sums.dtype) * own[..., None] + sums) / whole[..., None]
        return torch.where(count[..., None] > 0, merged.to(kept.dtype), kept)


def _most_similar(keys: Tensor, kept: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
    """Return the highest cosine of keys [B, G, n, D] with kept ones and which it is with, both [B, G, n]."""
    dtype = score_dtype(keys.dtype)
    directions = torch.nn.functional.normalize(kept.to(dtype), dim=-1).transpose(-1, -2)
    best = []
    for start in range(0, keys.shape[2], BLOCK):
        block = torch.nn.functional.normalize(keys[:, :, start : start + BLOCK].to(dtype), dim=-1)
        cosine = (block @ directions).masked_fill(~exists[:, :, None], -torch.inf)
        best.append(cosine.max(dim=-1))
    return torch.cat([b.values for b in best], dim=2), torch.cat([b.indices for b in best], dim=2)


def _most_similar_slot(keys: Tensor, victims: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Return the highest cosine of the slots of victims [B, G, k] with candidates and which it is with."""
    dtype = score_dtype(keys.dtype)
    norms = torch.linalg.vector_norm(keys, dim=-1, dtype=dtype).clamp(min=torch.finfo(dtype).tiny)
    products = (take(keys, victims) @ keys.transpose(-1, -2)).to(dtype)
    cosine = products / norms[:, :, None] / norms.gather(2, victims)[..., None]
    best = cosine.masked_fill(~candidates[:, :, None], -torch.inf).max(dim=-1)
    return best.values, best.indices


def weighted_sums(entries: Tensor, target: Tensor, weight: Tensor, kept: int) -> Tensor:
    """Return per kept entry the weighted sum of entries [B, G, n, D] that merge into it, a block at a time."""
    sums = torch.zeros((*entries.shape[:2], kept, entries.shape[3]), dtype=weight.dtype, device=weight.device)
    for start in range(0, entries.shape[2], BLOCK):
        block = slice(start, start + BLOCK)
        weighted = entries[:, :, block].to(weight.dtype) * weight[:, :, block, None]
        sums.scatter_add_(2, target[:, :, block, None].expand_as(weighted), weighted)
    return sums
