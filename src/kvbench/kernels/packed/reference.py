"""What the other kernels compute, in plain torch on any device, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvbench.kernels.packing import unpack
from kvbench.kernels.rotary import turn

if TYPE_CHECKING:
    from kvbench.kernels.packed import Packed, Spans

BLOCK = 32  # rows that exist as numbers at once


def dense(packed: Packed, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Return rows start .. stop as numbers [B, G, stop - start, D]."""
    if packed.table is not None:
        return _in_pages(packed, packed.table, start, stop, dtype)
    if packed.spans is not None:
        return _in_spans(packed, packed.spans, start, stop, dtype)
    numbers = _coded(packed, start, stop, dtype)
    outliers, turned = packed.outliers, packed.turned
    if outliers is not None:
        channel, value = outliers.channel[:, start:stop].long(), outliers.value[:, start:stop].to(dtype)
        tokens = numbers.transpose(1, 2).flatten(2).scatter(2, channel, value)
        numbers = tokens.unflatten(2, (-1, packed.form.dim)).transpose(1, 2)
    if turned is not None:
        numbers = turn(numbers, turned.position[:, :, start:stop], turned.inverse_frequency)
    return numbers


def _in_pages(packed: Packed, table: Tensor, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Return rows start .. stop of pages; 0 where there is no page."""
    size = packed.codes.shape[2]
    first, last = start // size, -(-stop // size)
    wanted = table[:, first:last]
    pages = wanted.clamp(min=0).long()
    low = None if packed.low is None else in_a_row(packed.low, pages)
    codes, scale = in_a_row(packed.codes, pages), in_a_row(packed.scale, pages)
    chosen = replace(packed, table=None, codes=codes, scale=scale, low=low)
    rows = slice(start - first * size, stop - first * size)
    is_there = (wanted >= 0).repeat_interleave(size, dim=1)[:, None, rows, None]
    return dense(chosen, rows.start, rows.stop, dtype).masked_fill(~is_there, 0)


def _in_spans(packed: Packed, spans: Spans, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Return rows start .. stop of each head; 0 past its last one."""
    row, is_there = spans.rows(start, stop)
    codes, scale = _in_places(packed.codes, row), _in_places(packed.scale, row)
    low = None if packed.low is None else _in_places(packed.low, row)
    chosen = replace(packed, spans=None, codes=codes, scale=scale, low=low)
    return dense(chosen, 0, stop - start, dtype).masked_fill(~is_there[..., None], 0)


def _in_places(rows: Tensor, place: Tensor) -> Tensor:
    """Return a copy of rows [1, 1, n, w] at places [B, G, c], as [B, G, c, w]."""
    return rows[0, 0].index_select(0, place.flatten()).view(*place.shape, -1)


def in_a_row(rows: Tensor, pages: Tensor) -> Tensor:
    """Return a copy of pages of rows [n, G, P, w]: those of each batch row [B, c] in a row [B, G, c P, w]."""
    (batch, count), (heads, size, width) = pages.shape, rows.shape[1:]
    index = pages[:, None] * heads + torch.arange(heads, device=pages.device)[:, None]
    return rows.flatten(0, 1).index_select(0, index.flatten()).view(batch, heads, count * size, width)


def _coded(packed: Packed, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Return what the codes of rows start .. stop stand for [B, G, stop - start, D]."""
    form = packed.form
    if form.numbers is not None:
        return packed.codes[:, :, start:stop].contiguous().view(form.numbers).to(dtype)
    codes = unpack(packed.codes[:, :, start:stop], form.bits, form.dim)
    if form.levels == "codebook":
        assert packed.levels is not None
        numbers = packed.levels.to(dtype)[codes.long()]
    elif form.levels == "e4m3":
        numbers = codes.view(torch.float8_e4m3fn).to(dtype)
    else:
        numbers = codes.to(dtype) - (2 ** (form.bits - 1) - 1 if form.symmetric else 0)
    numbers *= _spread(packed.scale, packed, start, stop).to(dtype)
    if packed.low is not None:
        numbers += _spread(packed.low, packed, start, stop).to(dtype)
    return numbers


def logits(rows: Tensor, packed: Packed, out: Tensor) -> None:
    """Write the products of rows [B, G, g, D] with the first m packed ones into out [B, G, g, m]."""
    for block in _blocks(out.shape[3]):
        numbers = dense(packed, block.start, block.stop, rows.dtype)
        out[..., block] = torch.matmul(rows, numbers.transpose(-1, -2))
        if packed.spans is not None:
            _, is_there = packed.spans.rows(block.start, block.stop)
            out[..., block].masked_fill_(~is_there[:, :, None], -torch.inf)


def weighted(weights: Tensor, packed: Packed) -> Tensor:
    """Return the sum of the first m packed rows by weights [B, G, g, m], as [B, G, g, D]."""
    out = weights.new_zeros((*weights.shape[:3], packed.form.dim))
    for block in _blocks(weights.shape[3]):
        out += torch.matmul(weights[..., block], dense(packed, block.start, block.stop, weights.dtype))
    return out


def _blocks(length: int) -> Iterator[slice]:
    for start in range(0, length, BLOCK):
        yield slice(start, min(length, start + BLOCK))


def _spread(scale: Tensor, packed: Packed, start: int, stop: int) -> Tensor:
    """Return one scale for each number of rows start .. stop [B, G, stop - start, D]."""
    form = packed.form
    scale = scale[:, :, torch.arange(start, stop, device=scale.device) // form.tokens]
    return scale.repeat_interleave(form.channels, dim=-1)[..., : form.dim] if form.channels > 1 else scale
