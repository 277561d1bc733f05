"""How much attention each entry received from a block of queries, never from a [T, m] matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.kernels.attend import visible_to

QUERY_BLOCK = 128


def column_sums(
    query: Tensor, keys: Tensor, scale: float, *, position: Tensor, query_position: Tensor, window: int
) -> Tensor:
    """Sum the attention weights of every query, per KV head, averaged over the query heads of its group.

    Args:
        query: [B, H, T, D].
        keys: [B, G, m, D].
        scale: factor of the logits.
        position: of the entries [B, 1, m]; -1 where there is none.
        query_position: of the queries [B, T]; -1 at padding, which counts for nothing.
        window: entries further back than this many tokens are not seen; 0 for no limit.

    Returns:
        Sums over the queries [B, G, m], float32 or wider; each query adds exactly 1 to its head.
    """
    batch, heads, tokens, width = query.shape
    groups, entries = keys.shape[1], keys.shape[2]
    wide = torch.promote_types(query.dtype, torch.float32)
    sums = torch.zeros(batch, groups, entries, dtype=wide, device=query.device)
    for start in range(0, tokens, QUERY_BLOCK):
        block = slice(start, start + QUERY_BLOCK)
        at = query_position[:, block]
        rows = (query[:, :, block] * scale).reshape(batch, groups, -1, width)  # group-major: [g, T] flattened
        logits = torch.matmul(rows, keys.transpose(-1, -2)).to(wide)
        logits = logits.view(batch, groups, heads // groups, at.shape[1], entries)
        logits.masked_fill_(~visible_to(position, at, window)[:, :, None], float("-inf"))
        weights = logits.softmax(dim=-1).masked_fill_((at < 0)[:, None, None, :, None], 0.0)
        sums += weights.sum(dim=3).mean(dim=2)
    return sums
