"""Attention over tiles of a cache, merged by log-sum-exp, with the weights that scorers need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kvbench.kernels.packed import Rows, pages_of

EMPTY = -1  # position of a slot that holds nothing
SUMMARY = -2  # position of an entry that stands for tokens of many positions, and is seen by all
QUERY_BLOCK = 256  # rows of queries whose mask exists at once


class Entries(Protocol):
    """Keys or values that are not kept as numbers [B, G, m, D]."""

    @property
    def groups(self) -> int:
        """KV heads."""

    @property
    def exact(self) -> int:
        """Entries that are as the model made them."""

    @property
    def outlier_entries(self) -> float:
        """As many entries as outliers would fill that are kept in more bits."""

    @property
    def sink_entries(self) -> int:
        """First entries that are kept in more bits."""

    def logits(self, rows: Tensor) -> Tensor:
        """Return the products of rows [B, G, g, D] with every entry [B, G, g, m], float32 or wider."""

    def weighted(self, weights: Tensor) -> Tensor:
        """Return the sum of the entries by weights [B, G, g, m], as [B, G, g, D]."""


@dataclass(frozen=True)
class Own:
    """Rows that take the place of some of a tile's.

    Args:
        index: which ones [B, 1 or G, r].
        rows: [B, G, r, D].
    """

    index: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Tile:
    """A run of entries as attention reads them.

    Args:
        keys: [B, G, m, D], or what stands for them.
        values: [B, G, m, D_v], or what stands for them.
        log_weight: added to the logits [B, 1 or G, m], the log of how many tokens an entry stands for; None for one.
        visible: entries that exist [B, 1 or G, m]; None where all do.
        key_scale: lengths of the keys, where these are directions [B, 1 or G, m].
        value_scale: lengths of the values, where these are directions [B, 1 or G, m]; 0 where a value has its own row.
        own_keys: keys that are no multiple of the tile's.
        own_values: values that are no multiple of the tile's.
        query: what stands for the query [B, H, 1, D], where keys are in another frame; None for itself.
    """

    keys: Tensor | Entries
    values: Tensor | Entries
    log_weight: Tensor | None = None
    visible: Tensor | None = None
    key_scale: Tensor | None = None
    value_scale: Tensor | None = None
    own_keys: Own | None = None
    own_values: Own | None = None
    query: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing but keys and values as the model made them."""
        beside = (self.log_weight, self.visible, self.key_scale, self.value_scale, self.query)
        numbers = isinstance(self.keys, Tensor) and isinstance(self.values, Tensor)
        return numbers and all(each is None for each in beside)


def attend_one(
    query: Tensor, tiles: Sequence[Tile], scale: float, *, with_weights: bool
) -> tuple[Tensor, list[Tensor] | None]:
    """Attention of one query token per row over everything the tiles hold.

    Args:
        query: [B, H, 1, D]; H is a multiple of the tiles' G, and heads of a group share keys without a copy.
        tiles: what is attended to; at least one entry must be visible.
        scale: factor of the logits.
        with_weights: whether to return the attention weights.

    Returns:
        The output [B, H, 1, D_v] and, per tile, the weights [B, G, H / G, m] in float32 or wider, or None.
    """
    batch, heads = query.shape[:2]
    pages = pages_of(tiles[0].keys)
    if pages is not None:
        assert not with_weights, "refused before"
        return _in_pages(query, tiles, pages, scale), None
    if len(tiles) == 1 and tiles[0].is_plain:
        return _of_plain(query, tiles[0], scale, with_weights=with_weights)
    logits = _all_logits(query, tiles, scale)
    if len(tiles) == 1:
        weights = [torch.softmax(logits[0], dim=-1)]
    else:
        total = torch.stack([part.logsumexp(dim=-1, keepdim=True) for part in logits]).logsumexp(dim=0)
        weights = [(part - total).exp() for part in logits]
    out = _all_weighted(weights, tiles)
    return out.reshape(batch, heads, 1, -1), weights if with_weights else None


def _of_plain(query: Tensor, tile: Tile, scale: float, *, with_weights: bool) -> tuple[Tensor, list[Tensor] | None]:
    """Return attention to entries that are as the model made them, in as few operations as there are."""
    assert isinstance(tile.keys, Tensor)
    assert isinstance(tile.values, Tensor)
    batch, heads, _, width = query.shape
    groups = tile.keys.shape[1]
    rows = (query * scale).reshape(batch * groups, heads // groups, width)
    logits = _products(rows, tile.keys.flatten(0, 1))
    wide = torch.float32 if logits.dtype in (torch.bfloat16, torch.float16) else logits.dtype
    weights = torch.softmax(logits, dim=-1, dtype=wide)
    out = torch.bmm(weights.to(query.dtype), tile.values.flatten(0, 1)).view(batch, heads, 1, -1)
    return out, [weights.view(batch, groups, heads // groups, -1)] if with_weights else None


def _in_pages(query: Tensor, tiles: Sequence[Tile], pages: tuple[Tensor, Tensor], scale: float) -> Tensor:
    """Return attention to entries whose keys and values are read at once, where they lie."""
    from kvbench.kernels.attend import flex

    (tile,), (keys, table), values = tiles, pages, pages_of(tiles[0].values)
    assert isinstance(tile.keys, Rows)
    assert values is not None
    assert tile.log_weight is None
    sets = 1 if tile.visible is None else tile.visible.shape[1]
    seen = torch.zeros((len(query), sets, table.shape[1] * keys.shape[2]), dtype=torch.bool, device=query.device)
    seen[:, :, : tile.keys.lengths[0]] = True if tile.visible is None else tile.visible
    return flex.attend(query, keys, values[0], scale, table=table, seen=seen)


@dataclass(frozen=True)
class Partial:
    """Attention of one query token per row over some of the entries, to be merged with that over the others.

    Args:
        out: [B, H, 1, D_v], as if there were no others; 0 where none is visible.
        log_sum: log of the sum of the logits' exponentials [B, H, 1, 1], float32 or wider; -inf where none is visible.
    """

    out: Tensor
    log_sum: Tensor


def attend_part(query: Tensor, tiles: Sequence[Tile], scale: float) -> Partial:
    """Attention over some of the entries, of which none has to be visible; arguments as of `attend_one`."""
    batch, heads = query.shape[:2]
    logits = _all_logits(query, tiles, scale)
    total = torch.stack([part.logsumexp(dim=-1, keepdim=True) for part in logits]).logsumexp(dim=0)
    weights = [(part - _finite(total)).exp() for part in logits]
    out = _all_weighted(weights, tiles)
    return Partial(out.reshape(batch, heads, 1, -1), total.reshape(batch, heads, 1, 1))


def merged(parts: Sequence[Partial]) -> Partial:
    """Return attention over the entries of all parts, which have none in common."""
    log_sums = torch.stack([part.log_sum for part in parts])
    total = log_sums.logsumexp(dim=0)
    shares = (log_sums - _finite(total)).exp()
    out = torch.stack([part.out * share for part, share in zip(parts, shares, strict=True)]).sum(dim=0)
    return Partial(out.to(parts[0].out.dtype), total)


def _finite(total: Tensor) -> Tensor:
    """Return what is taken off logits: nothing where all of them are -inf."""
    return total.masked_fill(total == float("-inf"), 0)


def _all_logits(query: Tensor, tiles: Sequence[Tile], scale: float) -> list[Tensor]:
    """Return the logits [B, G, H / G, m] of each tile."""
    batch, heads, _, width = query.shape
    first = tiles[0].keys
    groups = first.shape[1] if isinstance(first, Tensor) else first.groups
    size = (batch, groups, heads // groups, width)
    rows = (query * scale).reshape(size)
    return [_logits(rows if t.query is None else (t.query * scale).reshape(size), t) for t in tiles]


def _all_weighted(weights: Sequence[Tensor], tiles: Sequence[Tile]) -> Tensor:
    """Return the sum of all values [B, G, H / G, D_v]."""
    out = _weighted(weights[0], tiles[0])
    for weight, tile in zip(weights[1:], tiles[1:], strict=True):
        out = out + _weighted(weight, tile)
    return out


def _products(rows: Tensor, keys: Tensor) -> Tensor:
    """Return the products of rows [..., g, D] with keys [..., m, D], as [..., g, m].

    On a CPU the keys come first: a library then multiplies by them as they lie, where it would copy them for rows to
    the left.
    """
    if keys.device.type != "cpu":
        return torch.matmul(rows, keys.mT)
    return torch.matmul(keys, rows.mT).mT.contiguous()


def _logits(rows: Tensor, tile: Tile) -> Tensor:
    keys = tile.keys
    logits = _products(rows, keys) if isinstance(keys, Tensor) else keys.logits(rows)
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    if tile.key_scale is not None:
        logits = logits * tile.key_scale[:, :, None]
        if tile.own_keys is not None:
            own = torch.matmul(rows, tile.own_keys.rows.transpose(-1, -2)).to(logits.dtype)
            logits.scatter_(-1, tile.own_keys.index[:, :, None].expand_as(own), own)
    if tile.log_weight is not None:
        logits = logits + tile.log_weight[:, :, None]
    if tile.visible is not None:
        logits = logits.masked_fill(~tile.visible[:, :, None], float("-inf"))
    return logits


def _weighted(weights: Tensor, tile: Tile) -> Tensor:
    """Return the sum of a tile's values [B, G, H / G, D_v]."""
    values = tile.values
    if not isinstance(values, Tensor):
        return values.weighted(weights)
    dtype = values.dtype
    if tile.value_scale is None:
        return torch.matmul(weights.to(dtype), values)
    out = torch.matmul((weights * tile.value_scale[:, :, None]).to(dtype), values)
    if tile.own_values is None:
        return out
    index = tile.own_values.index[:, :, None].expand(-1, weights.shape[1], weights.shape[2], -1)
    return out + torch.matmul(weights.gather(-1, index).to(dtype), tile.own_values.rows)


def attend_prompt(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    *,
    position: Tensor,
    query_position: Tensor,
    window: int,
    log_weight: Tensor | None = None,
) -> Tensor:
    """Causal attention of many query tokens, without a [T, m] matrix for the whole prompt.

    Args:
        query: [B, H, T, D].
        keys: [B, G, m, D].
        values: [B, G, m, D_v].
        scale: factor of the logits.
        position: of the entries [B, 1 or G, m]; -1 where there is none.
        query_position: of the queries [B, T]; -1 at padding, whose output means nothing but is finite.
        window: entries further back than this many tokens are not seen; 0 for no limit.
        log_weight: added to the logits [B, 1 or G, m], the log of how many tokens an entry stands for; None for one.

    Returns:
        The output [B, H, T, D_v].
    """
    grouped = keys.shape[1] != query.shape[1]
    outs = []
    for start in range(0, query.shape[2], QUERY_BLOCK):
        block = slice(start, start + QUERY_BLOCK)
        mask = visible_to(position, query_position[:, block], window)
        if log_weight is not None:
            bias = torch.zeros((), dtype=query.dtype, device=query.device)
            mask = torch.where(mask, log_weight[:, :, None].to(bias.dtype), bias - torch.inf)
        if mask.shape[1] > 1:
            mask = mask.repeat_interleave(query.shape[1] // mask.shape[1], dim=1)
        outs.append(
            torch.nn.functional.scaled_dot_product_attention(
                query[:, :, block], keys, values, attn_mask=mask, scale=scale, enable_gqa=grouped
            )
        )
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)


def attend_runs(
    query: Tensor,
    runs: Iterable[tuple[Tensor, Tensor, Tensor | None]],
    scale: float,
    *,
    query_position: Tensor,
    window: int,
) -> Tensor:
    """Causal attention of many query tokens to entries of which one run exists as numbers at a time.

    Args:
        query: [B, H, T, D].
        runs: keys [B, G, m, D], values [B, G, m, D_v] and positions [B, 1 or G, m] of a run, -1 where there is none;
            None where every query sees all of it.
        scale: factor of the logits.
        query_position: of the queries [B, T]; -1 at padding, whose output means nothing but is finite.
        window: as of `attend_prompt`.

    Returns:
        The output [B, H, T, D_v].
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    starts = range(0, query.shape[2], QUERY_BLOCK)
    blocks = [(query[:, :, at : at + QUERY_BLOCK] * scale, query_position[:, at : at + QUERY_BLOCK]) for at in starts]
    running: list[_Running | None] = [None] * len(blocks)
    for keys, values, position in runs:
        groups = keys.shape[1]
        for index, (rows, at) in enumerate(blocks):
            logits = torch.matmul(rows.unflatten(1, (groups, -1)).flatten(2, 3), keys.mT).to(wide)
            logits = logits.unflatten(2, (-1, at.shape[1]))
            if position is not None:
                logits.masked_fill_(~visible_to(position, at, window)[:, :, None], float("-inf"))
            running[index] = _with_run(running[index], logits, values)
    outs = [(state.summed / state.total).to(query.dtype).flatten(1, 2) for state in running if state is not None]
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)


@dataclass(frozen=True)
class _Running:
    """Attention to the runs so far, before it is divided by the sum of its weights.

    Args:
        largest: logit [B, G, H / G, T, 1].
        total: of the weights, the largest of which is 1 [B, G, H / G, T, 1].
        summed: values [B, G, H / G, T, D_v].
    """

    largest: Tensor
    total: Tensor
    summed: Tensor


def _with_run(before: _Running | None, logits: Tensor, values: Tensor) -> _Running:
    """Return attention to one run more, whose logits [B, G, H / G, T, m] become its weights in place."""
    least = torch.finfo(logits.dtype).min  # where nothing is seen yet
    largest = logits.amax(dim=-1, keepdim=True).clamp(min=least)
    if before is not None:
        largest = torch.maximum(largest, before.largest)
    weights = logits.sub_(largest).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    share, tokens = weights.shape[2:4]
    summed = torch.matmul(weights.flatten(2, 3).to(values.dtype), values).to(weights.dtype)
    summed = summed.unflatten(2, (share, tokens))
    if before is not None:
        factor = (before.largest - largest).exp()
        total, summed = total + before.total * factor, summed + before.summed * factor
    return _Running(largest, total, summed)


def attend_causal(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Causal attention of a whole prompt without padding over itself: the fast case of `attend_prompt`."""
    return torch.nn.functional.scaled_dot_product_attention(
        query, keys, values, is_causal=True, scale=scale, enable_gqa=keys.shape[1] != query.shape[1]
    )


def visible_to(position: Tensor, query_position: Tensor, window: int) -> Tensor:
    """Return which entries a query sees [B, 1 or G, T, m].

    Padding queries see every entry, so that their softmax is finite.
    """
    entry, query = position[:, :, None, :], query_position[:, None, :, None]
    seen = (entry != EMPTY) & (entry <= query)
    if window > 0:
        seen &= entry > query - window
    return seen | (query < 0)
