"""FlexAttention over pages with one thing wrong each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from kvbench.kernels import attend
from kvbench.kernels.attend import Tile, flex
from tests.mutants.core_mutant import Mutant
from tests.support import flexing

columns, in_pages = flex._columns, attend._in_pages


def by_page(table: Tensor, pages: int) -> Tensor:
    """Take the number of a page for its column."""
    return torch.arange(pages + 1).expand(len(table), -1) % table.shape[1]


def with_gaps(table: Tensor) -> Tensor:
    """Leave pages that are not there where they would be."""
    return table.clamp(min=0)


def all_of_the_first_head(room: Tensor, batch: int) -> Tensor:
    """Let every head read the first one's slots."""
    pages, groups, size, width = room.shape
    slots = (groups * (pages - 1) + 1) * size
    return room.as_strided((batch, groups, slots, width), (0, 0, width, 1), room.storage_offset())


def everything(query: Tensor, tiles: Sequence[Tile], pages: tuple[Tensor, Tensor], scale: float) -> Tensor:
    """Attend to slots that hold nothing."""
    return in_pages(query, [replace(tiles[0], visible=None)], pages, scale)


where_they_lie = partial(flexing.pages_are_attended_to_where_they_lie, torch.float32, 16, 1)
MUTANTS = (
    Mutant(name="columns are not looked up", patches=((flex, "_columns", by_page),), killed_by=(where_they_lie,)),
    Mutant(name="what is not there is counted", patches=((flex, "_first", with_gaps),), killed_by=(where_they_lie,)),
    Mutant(
        name="heads read the first one's slots",
        patches=((flex, "_behind_first_page", all_of_the_first_head),),
        killed_by=(where_they_lie, partial(flexing.logits_are_those_of_slots_in_a_row, 16)),
    ),
    Mutant(
        name="padding is attended to",
        patches=((attend, "_in_pages", everything),),
        killed_by=(partial(flexing.logits_are_those_of_slots_in_a_row, 16),),
    ),
)
