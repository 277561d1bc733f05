"""Keys of a prompt along the few directions that they mostly lie along, all heads of a token together."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kvbench.cache.codecs.moments import main_directions
from kvbench.cache.plan import LayerPlan
from kvbench.cache.rotary import turn, turned_back
from kvbench.cache.views import Leaving
from kvbench.types import RunShape

BLOCK = 1024  # tokens whose keys are held in float64 at once


class LowRankKeys:
    """What is nearest to the keys of a prompt, before they are rotated, of all that has so low a rank.

    Each row has directions of its own: the main ones of its moments K^T K, [G D, G D] in float64, which takes
    n (G D)^2 multiplications and an eigenvalue problem of that size, and never holds all keys twice.

    Args:
        plan: of these heads.
        run: how long these rows are, all of them the same.
        key: an example [B, G, T, D].
        rank: coordinates of a token at most.
    """

    def __init__(self, plan: LayerPlan, run: RunShape, key: Tensor, rank: int) -> None:
        rank = _rank(plan, run, rank)
        self._rotary = plan.shape.rotary
        self._coordinates = key.new_empty((len(key), run.prompt_tokens, rank))
        self._directions = key.new_empty((*key.shape[:2], rank, key.shape[3]))

    def take(self, leaving: Leaving) -> None:
        """Take in a prompt, what stays of it elsewhere included."""
        heads, _, dim = self._directions.shape[1:]
        moments = sum(keys.mT @ keys for _, keys in self._blocks(leaving))
        assert isinstance(moments, Tensor)
        main = main_directions(moments)[1][..., : self._coordinates.shape[2]]
        for start, keys in self._blocks(leaving):
            self._coordinates[:, start : start + keys.shape[1]] = keys @ main
        self._directions.copy_(main.mT.unflatten(2, (heads, dim)).transpose(1, 2))

    def _blocks(self, leaving: Leaving) -> Iterator[tuple[int, Tensor]]:
        """Yield where keys begin, and some of them as they were before they were rotated [B, t, G D], in float64."""
        for start in range(0, leaving.keys.shape[2], BLOCK):
            part = slice(start, start + BLOCK)
            keys = turned_back(leaving.keys[:, :, part], leaving.position[:, :, part], self._rotary)
            yield start, keys.transpose(1, 2).flatten(2).double()

    def at(self, position: Tensor) -> Tensor:
        """Return the keys of each head at positions [B, G, m], rotated to them [B, G, m, D]."""
        rank = self._coordinates.shape[2]
        index = position.flatten(1).long()[..., None].expand(-1, -1, rank)
        coordinates = self._coordinates.gather(1, index).view(*position.shape, rank)
        wide = torch.promote_types(coordinates.dtype, torch.float32)
        keys = torch.matmul(coordinates.to(wide), self._directions.to(wide))
        if self._rotary is not None:
            keys = turn(keys, position, self._rotary)
        return keys.to(self._coordinates.dtype)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held."""
        return self._coordinates, self._directions


def held_bytes(plan: LayerPlan, run: RunShape, dtype: torch.dtype, rank: int) -> int:
    """Return the bytes of the coordinates and directions of a row; 0 for rank 0."""
    return read_bytes(plan, run, dtype, rank, run.prompt_tokens)


def read_bytes(plan: LayerPlan, run: RunShape, dtype: torch.dtype, rank: int, tokens: int) -> int:
    """Return the bytes of so many coordinates, and of the directions, of a row; 0 for rank 0."""
    width = plan.shape.kv_heads * plan.shape.key_dim
    return (tokens + width) * _rank(plan, run, rank) * dtype.itemsize


def _rank(plan: LayerPlan, run: RunShape, rank: int) -> int:
    """Return the coordinates a token has: no more than there are numbers or tokens."""
    return min(rank, plan.shape.kv_heads * plan.shape.key_dim, run.prompt_tokens)
