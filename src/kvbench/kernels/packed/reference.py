"""What the other kernels compute, in plain torch on any device, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvbench.kernels.packing import unpack

if TYPE_CHECKING:
    from kvbench.kernels.packed import Packed

BLOCK = 32  # rows that exist as numbers at once, unless more share a scale


def dense(packed: Packed, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Return rows start .. stop as numbers [B, G, stop - start, D]; start is a multiple of `form.tokens`."""
    form = packed.form
    if form.bits == 16:
        return packed.codes[:, :, start:stop].contiguous().view(torch.float16).to(dtype)
    codes = unpack(packed.codes[:, :, start:stop], form.bits, form.dim)
    numbers = (codes.view(torch.float8_e4m3fn) if form.is_float else codes).to(dtype)
    if form.symmetric and not form.is_float:
        numbers -= 2 ** (form.bits - 1) - 1
    shared = slice(start // form.tokens, -(-stop // form.tokens))
    numbers *= _spread(packed.scale[:, :, shared], packed, stop - start).to(dtype)
    if packed.low is not None:
        numbers += _spread(packed.low[:, :, shared], packed, stop - start).to(dtype)
    return numbers


def logits(rows: Tensor, packed: Packed, out: Tensor) -> None:
    """Write the products of rows [B, G, g, D] with packed ones into out [B, G, g, m]."""
    for block in _blocks(packed):
        numbers = dense(packed, block.start, block.stop, rows.dtype)
        out[..., block] = torch.matmul(rows, numbers.transpose(-1, -2))


def weighted(weights: Tensor, packed: Packed) -> Tensor:
    """Return the sum of packed rows by weights [B, G, g, m], as [B, G, g, D]."""
    out = weights.new_zeros((*weights.shape[:3], packed.form.dim))
    for block in _blocks(packed):
        out += torch.matmul(weights[..., block], dense(packed, block.start, block.stop, weights.dtype))
    return out


def _blocks(packed: Packed) -> Iterator[slice]:
    length, size = packed.codes.shape[2], packed.form.tokens * max(1, BLOCK // packed.form.tokens)
    for start in range(0, length, size):
        yield slice(start, min(length, start + size))


def _spread(scale: Tensor, packed: Packed, tokens: int) -> Tensor:
    """Return one scale for each number [B, G, tokens, D]."""
    form = packed.form
    if form.channels > 1:
        scale = scale.repeat_interleave(form.channels, dim=-1)[..., : form.dim]
    return scale if form.tokens == 1 else scale.repeat_interleave(form.tokens, dim=-2)[:, :, :tokens]
