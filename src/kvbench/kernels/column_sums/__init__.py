"""Attention weights a block of queries at a time, and how much each entry received: never a [T, m] matrix."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kvbench.kernels.attend import visible_to

QUERY_BLOCK = 128


def attention_blocks(
    query: Tensor, keys: Tensor, scale: float, *, position: Tensor, query_position: Tensor, window: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield attention weights, a block of queries at a time.

    Args:
        query: [B, H, T, D].
        keys: [B, G, m, D].
        scale: factor of the logits.
        position: of the entries [B, 1 or G, m]; -1 where there is none.
        query_position: of the queries [B, T]; -1 at padding, whose weights are 0.
        window: entries further back than this many tokens are not seen; 0 for no limit.

    Yields:
        Weights [B, G, H / G, t, m], float32 or wider, and the positions of the block's queries [B, t].
    """
    batch, heads, tokens, width = query.shape
    groups, entries = keys.shape[1], keys.shape[2]
    wide = torch.promote_types(query.dtype, torch.float32)
    for start in range(0, tokens, QUERY_BLOCK):
        block = slice(start, start + QUERY_BLOCK)
        at = query_position[:, block]
        rows = (query[:, :, block] * scale).reshape(batch, groups, -1, width)  # group-major: [g, T] flattened
        logits = torch.matmul(rows, keys.transpose(-1, -2)).to(wide)
        logits = logits.view(batch, groups, heads // groups, at.shape[1], entries)
        logits.masked_fill_(~visible_to(position, at, window)[:, :, None], float("-inf"))
        yield logits.softmax(dim=-1).masked_fill_((at < 0)[:, None, None, :, None], 0.0), at


def column_sums(
    query: Tensor, keys: Tensor, scale: float, *, position: Tensor, query_position: Tensor, window: int
) -> Tensor:
    """Sum the attention weights of every query, per KV head, averaged over the query heads of its group.

    Args:
        query: [B, H, T, D].
        keys: [B, G, m, D].
        scale: factor of the logits.
        position: of the entries [B, 1 or G, m]; -1 where there is none.
        query_position: of the queries [B, T]; -1 at padding, which counts for nothing.
        window: entries further back than this many tokens are not seen; 0 for no limit.

    Returns:
        Sums over the queries [B, G, m], float32 or wider; each query adds exactly 1 to its head.
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    sums = torch.zeros(keys.shape[:3], dtype=wide, device=query.device)
    blocks = attention_blocks(query, keys, scale, position=position, query_position=query_position, window=window)
    for weights, _ in blocks:
        sums += weights.sum(dim=3).mean(dim=2)
    return sums
