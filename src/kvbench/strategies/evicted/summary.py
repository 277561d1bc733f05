"""One entry stands for everything that has left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvbench.cache.plan import LayerPlan, score_dtype
from kvbench.cache.slots import Slots
from kvbench.cache.store import take
from kvbench.cache.views import Leaving, Merged
from kvbench.strategies.evicted.drop import EvictedDefaults
from kvbench.types import LayerShape

BLOCK = 512  # entries of a prompt that are widened at once


@dataclass(frozen=True, kw_only=True)
class Summary(EvictedDefaults):
    """The mean key and value of all that left, with the log of their number on its logits.

    With the number, a summary of equal keys is attended to exactly as those keys were. Sums and number are kept in
    float32 or wider and the entry is written from them, so that thousands of small updates are not lost in rounding.
    Keys are averaged as they are stored, each turned to its own position; the summary has no position.

    Source: mkurman (fixed-size-kv-cache), README and code; Tang et al. (RazorAttention), arXiv:2407.15891.
    Deviates: the code averages its last summary as if it were one token and gives it no weight; here it is the mean of
        all that left. Mode "sum" is what its README says, and an entry that draws attention by its length alone.

    Args:
        mode: "mean", weighed by how many tokens it stands for, or "sum", weighed as one.
    """

    weighs: ClassVar[bool] = True
    num_reserved: ClassVar[int] = 1

    mode: Literal["mean", "sum"]

    def __post_init__(self) -> None:
        """Refuse modes that mean nothing."""
        if self.mode not in ("mean", "sum"):
            raise ValueError(f"strategy.evicted.mode must be mean or sum; got {self.mode!r}.")

    def state_width(self, shape: LayerShape) -> int:
        """Return the width of the sum of the keys, the sum of the values and their number."""
        return shape.key_dim + shape.value_dim + 1

    def at_prompt_end(self, leaving: Leaving) -> Merged:
        """Put a summary of what leaves before what stays; it weighs nothing while nothing has left."""
        return self.begin(leaving, leaving.gone())

    def begin(self, leaving: Leaving, gone: Tensor) -> Merged:
        """Put a summary of some entries of a prompt [B, S, n] before what stays."""
        gone = gone.expand(-1, leaving.keys.shape[1], -1)
        dtype = score_dtype(leaving.keys.dtype)
        number = gone.sum(dim=2, keepdim=True).to(dtype)
        state = torch.cat([masked_sum(leaving.keys, gone), masked_sum(leaving.values, gone), number], dim=-1)
        key, value, log_weight = self._entry(state, leaving.keys.shape[3])
        at = leaving.index.clamp(min=0)
        sets = at.shape[1]
        return Merged(
            keys=torch.cat([key.to(leaving.keys.dtype), take(leaving.keys, at)], dim=2),
            values=torch.cat([value.to(leaving.values.dtype), take(leaving.values, at)], dim=2),
            log_weight=torch.nn.functional.pad(log_weight[:, :sets], (0, at.shape[2])),
            state=state,
        )

    def while_decoding(self, slots: Slots, victims: Tensor, plan: LayerPlan) -> None:
        """Add the victims to the sums and write the summary anew."""
        keys, values = slots.keys.read(slots.filled), slots.values.read(slots.filled)
        number = victims.new_full((*keys.shape[:2],), victims.shape[2])
        self.add(slots, take(keys, victims), take(values, victims), number)

    def add(self, slots: Slots, keys: Tensor, values: Tensor, number: Tensor) -> None:
        """Add entries [B, G, k, D] to the sums, and how many they are [B, G], and write the summary anew."""
        state, weights = slots.state, slots.log_weight
        assert state is not None
        assert weights is not None
        width = keys.shape[3]
        state[..., :width] += keys.sum(dim=2, dtype=state.dtype)
        state[..., width:-1] += values.sum(dim=2, dtype=state.dtype)
        state[..., -1] += number
        key, value, log_weight = self._entry(state, width)
        slots.keys.write(0, key.to(keys.dtype))
        slots.values.write(0, value.to(values.dtype))
        weights.narrow(2, 0, 1).copy_(log_weight[:, : weights.shape[1]])

    def _entry(self, state: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return key [B, G, 1, D], value [B, G, 1, D_v] and log weight [B, G, 1] of the summary."""
        number = state[..., -1:]
        if self.mode == "sum":
            sums, weight = state[..., :-1], number.clamp(max=1)
        else:
            sums, weight = state[..., :-1] / number.clamp(min=1), number
        entry = sums[:, :, None]
        return entry[..., :width], entry[..., width:], weight.log()


def masked_sum(entries: Tensor, chosen: Tensor) -> Tensor:
    """Sum the chosen [B, G, n] of entries [B, G, n, D] in float32 or wider, a block at a time [B, G, D]."""
    dtype = score_dtype(entries.dtype)
    total = torch.zeros((*entries.shape[:2], entries.shape[3]), dtype=dtype, device=entries.device)
    for start in range(0, entries.shape[2], BLOCK):
        block = slice(start, start + BLOCK)
        total += (entries[:, :, block].to(dtype) * chosen[:, :, block, None]).sum(dim=2)
    return total
