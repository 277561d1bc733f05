"""Blocks that each get one thing wrong."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from kvbench.cache import far as module
from kvbench.cache import rotary
from kvbench.cache.blocks import Representatives
from kvbench.cache.far import Far
from kvbench.cache.slots import Slots
from kvbench.kernels.attend import Tile
from kvbench.strategies.position.policies import Clamped
from tests.mutants.core_mutant import Mutant
from tests.support import blocks

put, choose, tiles, turn = Representatives.put, Representatives.choose, Far.tiles, rotary.turn


def least_attended(self: Representatives, first: int, keys: Tensor, score: Tensor) -> None:
    """Let the keys stand for a block that nobody looked at."""
    put(self, first, keys, -score)


def each_head_alone(self: Representatives, query: Tensor, among: int, most: int) -> Tensor:
    """Let the last head choose for all."""
    apart = query.clone()
    apart[:, : query.shape[1] // 2] = 0
    return choose(self, apart, among, most)


def worst_first(self: Representatives, query: Tensor, among: int, most: int) -> Tensor:
    """Read the blocks that fit worst."""
    return choose(self, -query, among, most)


def one_too_far(keys: Tensor, shift: Tensor | int, inverse_frequency: Tensor) -> Tensor:
    """Clamp distances to one more than there are in the window."""
    return turn(keys, shift + 1, inverse_frequency)


def without_the_first(self: Far, query: Tensor, slots: Slots) -> list[Tile]:
    """Forget the tokens that left first."""
    filled, self._filled_first = self._filled_first, 0
    found = tiles(self, query, slots)
    self._filled_first = filled
    return found


def always_elsewhere(self: Far, query: Tensor, slots: Slots) -> list[Tile]:
    """Attend to something else."""
    found = tiles(self, query, slots)
    keys = slots.keys.read(1)
    return [*found, Tile(torch.zeros_like(keys), torch.zeros_like(keys))]


_LOOPS = partial(blocks.equals_loops, "llama_gqa")
_WORKED, _PLANTED = blocks.representatives_are_the_most_attended, blocks.planted_key_comes_back

MUTANTS = (
    Mutant(
        name="the least attended stand for a block",
        patches=((Representatives, "put", least_attended),),
        killed_by=(_LOOPS, _WORKED, _PLANTED),
    ),
    Mutant(
        name="one head chooses for all",
        patches=((Representatives, "choose", each_head_alone),),
        killed_by=(_LOOPS, _WORKED),
    ),
    Mutant(
        name="the worst blocks are read",
        patches=((Representatives, "choose", worst_first),),
        killed_by=(_LOOPS, _PLANTED),
    ),
    Mutant(name="distances are not clamped", patches=((Clamped, "clamps", False),), killed_by=(_LOOPS,)),
    Mutant(name="distances are one too large", patches=((module, "turn", one_too_far),), killed_by=(_LOOPS,)),
    Mutant(name="the first tokens are not read", patches=((Far, "tiles", without_the_first),), killed_by=(_LOOPS,)),
    Mutant(
        name="something is read that nobody wrote",
        patches=((Far, "tiles", always_elsewhere),),
        killed_by=(blocks.a_short_prompt_is_the_baseline,),
    ),
)
