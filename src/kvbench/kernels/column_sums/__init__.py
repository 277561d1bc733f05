"""Attention weights a block of queries at a time, and how much each entry received: never a [T, m] matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kvbench.kernels.attend import EMPTY, visible_to

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
        Weights [B, G, H / G, t, c], float32 or wider, of the first c entries: the block's queries see none of the
        others; and the positions of these queries [B, t].
    """
    batch, heads, _, width = query.shape
    groups = keys.shape[1]
    wide = torch.promote_types(query.dtype, torch.float32)
    asked = query_position.split(QUERY_BLOCK, dim=1)
    blocks = zip(query.split(QUERY_BLOCK, dim=2), asked, _columns(position, asked), strict=True)
    for part, at, columns in blocks:
        rows = (part * scale).reshape(batch, groups, -1, width)  # group-major: [g, T] flattened
        logits = torch.matmul(rows, keys[:, :, :columns].transpose(-1, -2)).to(wide)
        logits = logits.view(batch, groups, heads // groups, at.shape[1], columns)
        seen = visible_to(position[..., :columns], at, window)
        bias = logits.new_zeros(seen.shape).masked_fill_(~seen, float("-inf"))  # adding is quicker than filling
        weights = logits.add_(bias[:, :, None]).softmax(dim=-1)
        yield weights.mul_((at >= 0).to(wide)[:, None, None, :, None]), at


def _columns(position: Tensor, asked: Sequence[Tensor]) -> list[int]:
    """Return how many of the first entries hold all that each block of queries sees; read once from the device."""
    entries = position.shape[-1]
    if len(asked) == 1:
        return [entries]
    newest = torch.stack([at.amax() for at in asked])
    oldest = position.masked_fill(position == EMPTY, torch.iinfo(position.dtype).max).amin(dim=(0, 1))
    number = torch.arange(1, entries + 1, device=position.device)
    found: list[int] = (number * (oldest <= newest[:, None])).amax(dim=1).clamp(min=1).tolist()
    return found


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
        sums[..., : weights.shape[-1]] += weights.sum(dim=3).mean(dim=2)
    return sums
