"""Numbers between -1 and 1 as the nearest ones of a table, and what is taken off them first."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest(numbers: Tensor, levels: Tensor) -> Tensor:
    """Return which of ascending levels [n] is nearest to each number, uint8."""
    middle = ((levels[1:] + levels[:-1]) / 2).to(numbers.dtype)
    return torch.bucketize(numbers, middle, out_int32=True).to(torch.uint8)


def unit(numbers: Tensor, scale: Tensor, low: Tensor) -> Tensor:
    """Return numbers such that from low - scale to low + scale is from -1 to 1; all 0 where the scale is."""
    wide = scale.to(numbers.dtype)
    return (numbers - low.to(numbers.dtype)) / torch.where(wide == 0, 1.0, wide)


def between(least: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and low of numbers between two others, float16."""
    return ((most - least) / 2).half(), ((most + least) / 2).half()


def of_each(tokens: Tensor, outliers: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return of each token which of its numbers are outliers, and scale and low of the others.

    Args:
        tokens: numbers [..., C].
        outliers: of a token; those that are furthest from its median.

    Returns:
        Channels [..., outliers], and scale and low [..., 1], float16.
    """
    median = tokens.median(dim=-1, keepdim=True).values
    channel = (tokens - median).abs().topk(outliers, dim=-1).indices
    rest = tokens.scatter(-1, channel, median.expand_as(channel))
    return channel, *between(rest.amin(dim=-1, keepdim=True), rest.amax(dim=-1, keepdim=True))
