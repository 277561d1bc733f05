"""Heads one behind the other with one thing wrong each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from kvbench.cache import ragged
from kvbench.cache.ragged import RaggedSlots, RaggedStore
from tests.mutants.core_mutant import Mutant
from tests.support.checks import growing_equals_fixed, restore_is_exact
from tests.support.ragged import equals_heads_apart, steps_do_not_grow_with_heads

rows, lay, places = ragged._rows, RaggedSlots._lay, ragged._places


def of_the_next_head(entries: Tensor, head: Tensor, column: Tensor) -> Tensor:
    """Take each head's entries from the one behind it."""
    return rows(entries, (head + 1) % (entries.shape[0] * entries.shape[1]), column)


def a_position_late(
    self: RaggedSlots, device: torch.device, kept: Sequence[int], after: Sequence[int], more: int
) -> int:
    """Say that what follows the prompt comes a token later."""
    return lay(self, device, kept, [position + 1 for position in after], more)


def from_the_start(starts: Sequence[int], counts: Sequence[int], device: torch.device) -> Tensor:
    """Move what lies a place further on."""
    return places([max(0, start - 1) for start in starts], counts, device)


def only_the_time(self: RaggedStore, snapshot: dict[str, int]) -> None:
    """Go back in time, and keep what came since."""
    self.seen = snapshot["seen"]


def head_by_head(self: RaggedSlots, keys: Tensor, values: Tensor) -> None:
    """Store each head's entry on its own."""
    stop, ahead = self.spans.stop.flatten(), self._ahead.flatten()
    heads = zip(keys.flatten(0, 1), values.flatten(0, 1), strict=True)
    for head, (key, value) in enumerate(heads):
        at = stop[head : head + 1]
        self.put(at, key, value, at + ahead[head : head + 1])
    self.spans.stop.add_(1)


_APART = partial(equals_heads_apart, "adakv", "llama_mha")
MUTANTS = (
    Mutant(
        name="a head has the entries of the next",
        patches=((ragged, "_rows", of_the_next_head),),
        killed_by=(_APART,),
    ),
    Mutant(
        name="what follows the prompt comes a token later",
        patches=((RaggedSlots, "_lay", a_position_late),),
        killed_by=(_APART,),
    ),
    Mutant(
        name="what grows loses its place",
        patches=((ragged, "_places", from_the_start),),
        killed_by=(partial(growing_equals_fixed, "adakv", "llama_gqa"),),
    ),
    Mutant(
        name="what was restored still holds what came since",
        patches=((RaggedStore, "restore", only_the_time),),
        killed_by=(partial(restore_is_exact, "adakv", "llama_gqa"),),
        error=IndexError,
    ),
    Mutant(
        name="heads are stored one after the other",
        patches=((RaggedSlots, "append", head_by_head),),
        killed_by=(partial(steps_do_not_grow_with_heads, "adakv"),),
    ),
)
