"""The values of entries that leave are spread over the entries that follow them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.cache.plan import LayerPlan, score_dtype
from kvbench.cache.slots import Slots
from kvbench.cache.store import take
from kvbench.cache.views import Leaving, Merged
from kvbench.strategies.evicted.drop import EvictedDefaults
from kvbench.strategies.evicted.summary import BLOCK
from kvbench.strategies.selection.lots import PRIME, lots

_NEVER = 2**31 - 1  # a position no entry has


@dataclass(frozen=True, kw_only=True)
class FollowingMerge(EvictedDefaults):
    """Adds an equal share of a leaving value to each of the next kept entries, by lot; keys stay as they are.

    The chance to be merged is the entry's score over the mean score of those entries, at most 1.

    Source: Zhang et al. (CaM), ICML 2024, and their code.
    Deviates: whatever leaves is merged, at the end of the prompt too, not only what the recent window lets go; the next
        entries are those still held (as in NVIDIA/kvpress), and where there are fewer they share the whole value.

    Args:
        num_following: entries a value is spread over.
        seed: of the lots, which depend on layer, KV head and position besides.
    """

    num_following: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.num_following < 1:
            raise ValueError(f"strategy.evicted.num_following must be at least 1; got {self.num_following}.")

    def at_prompt_end(self, leaving: Leaving) -> Merged:
        """Spread the values of all that leave; sums over runs of kept entries come from differences, summed up."""
        at, exists = leaving.index.clamp(min=0), leaving.index >= 0
        values, score = leaving.values, leaving.score
        wide = score_dtype(values.dtype)
        kept = leaving.position.expand(-1, at.shape[1], -1).gather(2, at).masked_fill(~exists, _NEVER)
        position = leaving.position.expand(-1, at.shape[1], -1)
        first = torch.searchsorted(kept.contiguous(), position.contiguous(), right=True)
        last = torch.minimum(first + self.num_following, exists.sum(dim=-1, keepdim=True))
        number = last - first
        summed = torch.nn.functional.pad((score.gather(2, at) * exists).double().cumsum(dim=-1), (1, 0))
        mean = (summed.gather(2, last) - summed.gather(2, first)) / number.clamp(min=1)
        merges = self._lot_falls(score, mean, position, leaving.layer, values.shape[1])
        share = (merges & leaving.gone() & (number > 0)).to(wide) / number.clamp(min=1)
        steps = torch.zeros((*values.shape[:2], at.shape[2] + 1, values.shape[3]), dtype=wide, device=values.device)
        for start in range(0, values.shape[2], BLOCK):
            block = slice(start, start + BLOCK)
            part = values[:, :, block].to(wide) * share[:, :, block, None]
            for where, sign in ((first, 1), (last, -1)):
                steps.scatter_add_(2, where[:, :, block, None].expand_as(part), part * sign)
        added = steps.cumsum(dim=2)[:, :, :-1]
        return Merged(keys=take(leaving.keys, at), values=(take(values, at) + added).to(values.dtype))

    def while_decoding(self, slots: Slots, victims: Tensor, plan: LayerPlan) -> None:
        """Spread the victims' values, in place."""
        assert slots.score is not None
        position, score = (row.narrow(2, 0, slots.filled) for row in (slots.position, slots.score))
        values = slots.values.read(slots.filled)
        mine = position.gather(2, victims)
        held = position.scatter(2, victims, -1)[:, :, None]
        later = held.masked_fill(held <= mine[..., None], _NEVER)
        most = min(self.num_following, slots.filled)
        following = later.topk(most, dim=-1, largest=False)
        exists = following.values != _NEVER
        number = exists.sum(dim=-1)
        scores = score[:, :, None].expand_as(later).gather(3, following.indices)
        mean = (scores * exists).sum(dim=-1) / number.clamp(min=1)
        merges = self._lot_falls(score.gather(2, victims), mean, mine, plan.index, values.shape[1])
        share = merges.to(score.dtype) / number.clamp(min=1)
        for each in range(victims.shape[2]):  # one after the other, because they may share entries that follow
            part = take(values, victims[:, :, each : each + 1]) * share[:, :, each, None, None]
            slot = following.indices[:, :, each]
            added = take(values, slot) + part * exists[:, :, each, :, None]
            slots.values.scatter(slot, added.to(values.dtype))

    def _lot_falls(self, score: Tensor, mean: Tensor, position: Tensor, layer: int, heads: int) -> Tensor:
        """Return whether entries [B, S, k] are merged, per KV head [B, G, k]; never where no score is there at all."""
        chance = (score / mean).nan_to_num(nan=0.0, posinf=1.0).clamp(0, 1)
        head = torch.arange(heads, device=score.device)[:, None]
        return lots(self.seed, layer, head, position).to(score.dtype) / PRIME < chance
