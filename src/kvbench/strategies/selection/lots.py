"""Chance as a hash of where an entry stands: no generator has a state, so batching and chunking change nothing."""

from __future__ import annotations

import torch
from torch import Tensor

PRIME = 2**31 - 1  # products of two residues stay inside int64
_MULTIPLIERS = (48_271, 69_621, 630_360_016)  # full-period multipliers modulo the prime
_STRIDE, _HEAD_STRIDE, _LAYER_STRIDE, _SEED_STRIDE = 1_000_003, 7_919, 104_729, 15_485_863
_PAIR_MULTIPLIERS, _PAIR_SHIFT = (1_540_483_477, 668_265_263), 15  # odd, so that no pair is lost
_SPARE_BITS, _LEVELS = 8, 2**23  # as many bits as float32 holds exactly together with a half


def mixed(number: Tensor) -> Tensor:
    """Return whole numbers from 0 to `PRIME` - 1 that look like chance.

    Args:
        number: whole numbers in int64, of any shape.
    """
    for multiplier in _MULTIPLIERS:
        number = (number.remainder(PRIME) * multiplier).remainder(PRIME)
        number = number ^ (number >> 13)
    return number.remainder(PRIME)


def lots(seed: int, layer: int, head: Tensor, position: Tensor) -> Tensor:
    """Return a lot per head and position, whole numbers from 0 to `PRIME` - 1; shapes broadcast."""
    return mixed((position.long() + 1) * _STRIDE + head * _HEAD_STRIDE + layer * _LAYER_STRIDE + seed * _SEED_STRIDE)


def pair_lots(seed: int, layer: int, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Return a lot per head and pair of positions, in int32; shapes broadcast, queries and keys hashed before they do.

    What is left for each pair is short: two multiplications modulo 2**32 and a shift between them.
    """
    pair = lots(seed, layer, head, query).int() ^ mixed((key.long() + 1) * _STRIDE).int()
    pair = pair.mul_(_PAIR_MULTIPLIERS[0])
    pair ^= pair >> _PAIR_SHIFT
    return pair.mul_(_PAIR_MULTIPLIERS[1]).bitwise_and_(PRIME)


def exponential(lot: Tensor, dtype: torch.dtype) -> Tensor:
    """Return exponential variates of mean 1, each of which minus the log is a Gumbel variate.

    Args:
        lot: whole numbers from 0 to `PRIME` - 1.
        dtype: of the result, float32 or wider; neither 0 nor infinity occurs.
    """
    return (lot >> _SPARE_BITS).to(dtype).add_(0.5).div_(_LEVELS).log_().neg_()
