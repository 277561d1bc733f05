"""The numbers that stand for a normal one with the least squared error."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from kvbench.cache.codecs.nonuniform import nearest

CLOSE = 1e-12  # levels no longer move


@cache
def levels(bits: int) -> Tensor:
    """Return 2^bits ascending numbers in float64, each the mean of what is nearest to it (Lloyd and Max)."""
    found: Tensor = torch.linspace(-2, 2, 2**bits, dtype=torch.float64)
    while True:
        ends = torch.cat([found.new_tensor([-math.inf]), middles(found), found.new_tensor([math.inf])])
        density = (-ends.square() / 2).exp() / math.sqrt(2 * math.pi)
        before, found = found, -density.diff() / torch.special.ndtr(ends).diff()
        found = (found - found.flip(0)) / 2  # as often below 0 as above it, to the bit
        if (found - before).abs().max() < CLOSE:
            return found


def middles(found: Tensor) -> Tensor:
    """Return where the nearest of ascending numbers becomes the next one."""
    return (found[1:] + found[:-1]) / 2


@cache
def table(bits: int, device: torch.device) -> Tensor:
    """Return the levels on a device, float32: a constant, which all caches share."""
    return levels(bits).float().to(device)


def encode(numbers: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return which level each number is nearest to, uint8, and what levels are multiplied by, float16 [..., 1].

    Args:
        numbers: float32 [..., D]; rows of zeros are multiplied by 0.
        bits: of a code.
    """
    scale = numbers.square().mean(dim=-1, keepdim=True).sqrt().half()
    parts = numbers / torch.where(scale == 0, 1.0, scale.float())
    return nearest(parts, table(bits, numbers.device)), scale
