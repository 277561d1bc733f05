"""Tiled attention with one thing wrong each."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from kvbench.kernels.attend import tiled
from kvbench.kernels.attend.tiled import Tiling
from tests.mutants.core_mutant import Mutant
from tests.support import tiled as oracles

attend, seen = tiled.attend_tiled, Tiling.seen
TILE = Tiling(rows=3, columns=5, is_causal=True)


def without_a_running_maximum(
    query: Tensor, keys: Tensor, values: Tensor, scale: float, tiling: Tiling
) -> tuple[Tensor, Tensor, int]:
    """Give each tile of keys the same share."""
    parts = [
        attend(
            query, keys[:, :, at : at + 5], values[:, :, at : at + 5], scale, Tiling(rows=3, columns=5, is_causal=False)
        )
        for at in range(0, keys.shape[2], 5)
    ]
    return torch.stack([out for out, _, _ in parts]).mean(dim=0), parts[0][1], sum(part[2] for part in parts)


def everything(self: Tiling, first: int, queries: int, keys: int) -> int:
    """Read tiles that nobody in them sees."""
    return keys


def a_tile_short(self: Tiling, first: int, queries: int, keys: int) -> int:
    """Leave the last tile out."""
    return max(0, seen(self, first, queries, keys) - self.columns)


MUTANTS = (
    Mutant(
        name="tiles are averaged",
        patches=((tiled, "attend_tiled", without_a_running_maximum),),
        killed_by=(partial(oracles.any_tile_gives_the_softmax, TILE),),
    ),
    Mutant(
        name="the last tile is left out",
        patches=((Tiling, "seen", a_tile_short),),
        killed_by=(
            partial(oracles.any_tile_gives_the_softmax, TILE),
            oracles.a_query_that_sees_nothing_says_nothing,
        ),
    ),
    Mutant(
        name="tiles of the future are read",
        patches=((Tiling, "seen", everything),),
        killed_by=(partial(oracles.bytes_counted_are_the_formula, TILE),),
    ),
)
