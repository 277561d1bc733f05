"""Entries matter that stand out from the range of what follows them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.cache.plan import score_dtype
from kvbench.cache.store import take
from kvbench.cache.views import PromptView
from kvbench.strategies.selection.scorer import ScorerDefaults


@dataclass(frozen=True, kw_only=True)
class LagRank(ScorerDefaults):
    """The rank of an entry within its partition of the prompt, by how uneven it is over channels.

    A partition's keys and values are scaled, channel by channel, to the range of the next partition; the standard
    deviation over channels, through a softmax over the partition, is averaged over keys and values and ranked. The
    sinks, the last whole partition and what follows it stand at the top, so that a partition's scores are final as
    soon as the next one is whole. With ranks instead of values every partition loses the same share.

    Source: Liang et al. (LagKV), arXiv:2504.04704; ranks as LagKVPress in NVIDIA/kvpress forms them.
    Deviates: entries leave once, at the prompt's end, where the authors' code compresses each partition as soon as
        it can, while decoding too; the budget is that of the row, not a share of each partition; a channel without
        a range in the next partition counts as 0 (the authors divide by 0).

    Args:
        lag: entries per partition.
        num_sink: first tokens, which belong to no partition.
    """

    lag: int
    num_sink: int

    def __post_init__(self) -> None:
        """Refuse partitions that mean nothing."""
        if self.lag < 1 or self.num_sink < 0:
            raise ValueError(
                f"strategy.scorer needs lag >= 1 and num_sink >= 0; got lag={self.lag}, num_sink={self.num_sink}."
            )

    def prompt(self, view: PromptView) -> Tensor:
        """Return the ranks over the partition's length, below 1, and 1 at the top [B, G, n]."""
        batch, heads, columns, _ = view.keys.shape
        dtype, device = score_dtype(view.keys.dtype), view.keys.device
        score = torch.ones(batch, heads, columns, dtype=dtype, device=device)
        number = (columns - self.num_sink) // self.lag
        if number < 2:
            return score
        lengths = (view.position[:, 0] >= 0).sum(dim=-1)[:, None]
        column = columns - lengths + self.num_sink + torch.arange(number * self.lag, device=device)
        column = column.clamp(max=columns - 1)[:, None].expand(-1, heads, -1)  # shorter rows have fewer partitions
        unevenness = sum(self._unevenness(entries, column) for entries in (view.keys, view.values))
        assert isinstance(unevenness, Tensor)
        rank = unevenness.argsort(dim=-1, stable=True).argsort(dim=-1).to(dtype) / self.lag
        following = self.num_sink + (torch.arange(number - 1, device=device) + 2) * self.lag
        rank = torch.where((following <= lengths)[:, None, :, None], rank, 1.0)
        return score.scatter(2, column[..., : -self.lag], rank.flatten(2))

    def _unevenness(self, entries: Tensor, column: Tensor) -> Tensor:
        """Return how uneven entries [B, G, n, D] are against the partition after theirs [B, G, partitions - 1, lag]."""
        parts = take(entries, column).unflatten(2, (-1, self.lag)).to(score_dtype(entries.dtype))
        low, high = parts[:, :, 1:].amin(dim=3, keepdim=True), parts[:, :, 1:].amax(dim=3, keepdim=True)
        size = torch.where(high > low, 1 / (high - low), 0.0)
        scaled = (parts[:, :, :-1] - low).mul_(size)
        apart = scaled.sub_(scaled.mean(dim=-1, keepdim=True))  # std itself takes ten times as long
        spread: Tensor = torch.linalg.vector_norm(apart, dim=-1) / (apart.shape[-1] - 1) ** 0.5
        return spread.softmax(dim=-1)
