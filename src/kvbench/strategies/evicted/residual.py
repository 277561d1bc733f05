"""A few entries each stand for a part of what has left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.cache.plan import LayerPlan, score_dtype
from kvbench.cache.slots import Slots
from kvbench.cache.store import take
from kvbench.cache.views import Leaving, Merged
from kvbench.strategies.evicted.nearest import weighted_sums
from kvbench.types import LayerShape


@dataclass(frozen=True, kw_only=True)
class Residual:
    """Means of what has left, each with the log of its number on its logits.

    At the end of the prompt what leaves is cut, in order, into as many parts of equal size. Later an entry joins an
    empty mean if there is one, else the one whose key has the largest product with its own. Sums and numbers are kept
    in float32 or wider, and the entries are written from them.

    Source: Liu et al. (ZeroMerge), arXiv:2503.10714, and their code.
    Deviates: the parts are of equal size where the code's follow from its block sizes.

    Args:
        num_entries: of the budget that are means.
        compensation: factor of the log of the number; 1 is exact for equal keys, 0 lets a mean count as one token.
    """

    merges: ClassVar[bool] = True
    weighs: ClassVar[bool] = True

    num_entries: int
    compensation: float

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.num_entries < 1:
            raise ValueError(f"strategy.evicted.num_entries must be at least 1; got {self.num_entries}.")
        if not 0 <= self.compensation <= 1:
            raise ValueError(f"strategy.evicted.compensation must be between 0 and 1; got {self.compensation}.")

    @property
    def num_reserved(self) -> int:
        """How many entries of the budget are means."""
        return self.num_entries

    def state_width(self, shape: LayerShape) -> int:
        """Return the width of a sum of keys, a sum of values and their number, for every mean."""
        return self.num_entries * (shape.key_dim + shape.value_dim + 1)

    def at_prompt_end(self, leaving: Leaving) -> Merged:
        """Put the means of what leaves before what stays; one without entries weighs nothing."""
        gone = leaving.gone().expand(-1, leaving.keys.shape[1], -1)
        number = gone.sum(dim=2, keepdim=True).clamp(min=1)
        part = ((gone.cumsum(dim=2) - 1).clamp(min=0) * self.num_entries // number).clamp(max=self.num_entries - 1)
        weight = gone.to(score_dtype(leaving.keys.dtype))
        sums = [weighted_sums(t, part, weight, self.num_entries) for t in (leaving.keys, leaving.values)]
        counts = torch.zeros(sums[0].shape[:3], dtype=weight.dtype, device=weight.device)
        state = torch.cat([*sums, counts.scatter_add_(2, part, weight)[..., None]], dim=-1)
        key, value, log_weight = self._entries(state, leaving.keys.shape[3])
        at = leaving.index.clamp(min=0)
        return Merged(
            keys=torch.cat([key.to(leaving.keys.dtype), take(leaving.keys, at)], dim=2),
            values=torch.cat([value.to(leaving.values.dtype), take(leaving.values, at)], dim=2),
            log_weight=torch.nn.functional.pad(log_weight[:, : at.shape[1]], (0, at.shape[2])),
            state=state.flatten(2),
        )

    def while_decoding(self, slots: Slots, victims: Tensor, plan: LayerPlan) -> None:
        """Add each victim to a mean and write the means anew."""
        assert slots.state is not None
        assert slots.log_weight is not None
        state = slots.state.view(*slots.state.shape[:2], self.num_entries, -1)
        keys, values = slots.keys.read(slots.filled), slots.values.read(slots.filled)
        gone = take(keys, victims).to(state.dtype)
        joins = self._nearest(state, gone, victims.shape[1])
        added = torch.cat([gone, take(values, victims).to(state.dtype), torch.ones_like(gone[..., :1])], dim=-1)
        state.add_(joins.transpose(-1, -2).to(state.dtype) @ added)
        key, value, log_weight = self._entries(state, keys.shape[3])
        slots.keys.write(0, key.to(keys.dtype))
        slots.values.write(0, value.to(values.dtype))
        slots.log_weight.narrow(2, 0, self.num_entries).copy_(log_weight[:, : slots.log_weight.shape[1]])

    def _nearest(self, state: Tensor, gone: Tensor, sets: int) -> Tensor:
        """Return which mean each of the keys [B, G, k, D] joins [B, G, k, R]; heads of one kept set join the same."""
        number, order = state[..., -1], torch.arange(self.num_entries, device=state.device)
        means = state[..., : gone.shape[3]] / number.clamp(min=1)[..., None]
        products = gone @ means.transpose(-1, -2)
        if sets == 1:
            products = products.mean(dim=1, keepdim=True).expand_as(products)
        first_empty = order.expand(number.shape).masked_fill(number > 0, self.num_entries).amin(dim=-1, keepdim=True)
        nearest = torch.where(first_empty < self.num_entries, first_empty, products.argmax(dim=-1))
        return nearest[..., None] == order

    def _entries(self, state: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return keys [B, G, R, D], values [B, G, R, D_v] and log weights [B, G, R] of the means."""
        number = state[..., -1]
        means = state[..., :-1] / number.clamp(min=1)[..., None]
        log_weight = (number.log() * self.compensation).masked_fill(number == 0, -torch.inf)
        return means[..., :width], means[..., width:], log_weight
