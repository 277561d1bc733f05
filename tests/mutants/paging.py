"""Pages with one thing wrong each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from kvbench.cache import page_table, plan
from kvbench.cache.codecs.alone import Numbers
from kvbench.cache.page_table import PageTable
from kvbench.cache.paged import PagedPayload, PagedRoom
from kvbench.cache.plan import LayerPlan
from kvbench.types import RunShape
from tests.mutants.core_mutant import Mutant
from tests.support import paging

reserve, write, give_back, num_pages = PageTable.reserve, PagedPayload.write, PageTable.give_back, page_table.num_pages
grow, put, room_bytes = PagedRoom.grow, PagedRoom.put, LayerPlan.room_bytes


def all_at_once(self: PageTable, stop: int) -> None:
    """Take every page with the first token."""
    reserve(self, self.capacity)


def crossed(self: PagedRoom, page: Tensor, slot: int, entries: Tensor) -> None:
    """Store the entries of a decode step in each other's pages."""
    put(self, page.flip(0), slot, entries)


def by_turns(self: PageTable, stop: int) -> None:
    """Give each row a page before any has another."""
    for slots in range(self.size * (self.taken + 1), stop + self.size, self.size):
        reserve(self, slots)


def with_the_last(self: PageTable, stop: int) -> None:
    """Take a page too few where padding ends within one."""
    unused, self.unused = self.unused, tuple(-(-each // self.size) * self.size for each in self.unused)
    reserve(self, stop)
    self.unused = unused


def the_same_for_all(self: PageTable, stop: int) -> None:
    """Give every row the pages of the first."""
    reserve(self, stop)
    self.index[1:, : self.taken] = self.index[:1, : self.taken]


def a_slot_late(self: PagedPayload, start: int, entries: Tensor, position: Tensor | int | None = None) -> None:
    """Forget at which slot of its page a single entry lies."""
    single = entries.shape[2] == 1
    write(self, start - start % self.table.size if single else start, entries, position)


def for_padding_too(size: int, slots: int, unused: tuple[int, ...]) -> int:
    """Count a page for every column."""
    return num_pages(size, slots, (0,) * len(unused))


def in_a_row(self: LayerPlan, slots: int, run: RunShape, dtype: torch.dtype, unused: int = 0) -> int:
    """Count slots as if they lay one behind the other."""
    return room_bytes(replace(self, pages=None), slots, run, dtype, unused)


def never(self: PageTable, taken: int) -> None:
    """Keep what was taken."""


def anew(self: PagedRoom, pages: int) -> None:
    """Forget what lay in the pages before."""
    grow(self, pages)
    for room in self.kept:
        room.zero_()


def rounded(self: Numbers, entries: Tensor) -> tuple[Tensor]:
    """Keep numbers in half as many bits."""
    return (entries.float().to(self.dtype),)


equal = partial(paging.pages_equal_slots_in_a_row, "llama_gqa")
MUTANTS = (
    Mutant(
        name="all pages are taken at once",
        patches=((PageTable, "reserve", all_at_once),),
        killed_by=(paging.pages_are_taken_when_they_are_needed, paging.pages_are_used_well),
    ),
    Mutant(
        name="rows take pages by turns",
        patches=((PageTable, "reserve", by_turns),),
        killed_by=(paging.pages_of_a_row_are_neighbours,),
    ),
    Mutant(
        name="a page that holds some padding is not taken",
        patches=((PageTable, "reserve", with_the_last),),
        killed_by=(paging.pages_of_a_row_are_neighbours,),
    ),
    Mutant(
        name="rows share pages",
        patches=((PageTable, "reserve", the_same_for_all),),
        killed_by=(partial(equal, 4), paging.pages_of_a_row_are_neighbours),
    ),
    Mutant(
        name="entries lie at the first slot of their page",
        patches=((PagedPayload, "write", a_slot_late),),
        killed_by=(
            partial(equal, 4),
            paging.a_growing_cache_keeps_its_pages,
            partial(paging.the_native_kernel_reads_pages, torch.float32, 1e-4),
        ),
    ),
    Mutant(
        name="rows store their entries in each other's pages",
        patches=((PagedRoom, "put", crossed),),
        killed_by=(partial(equal, 4), partial(equal, 4, name="baseline", lengths=paging.RAGGED)),
    ),
    Mutant(
        name="padding is counted",
        patches=((plan, "num_pages", for_padding_too),),
        killed_by=(partial(paging.bytes_in_pages_are_the_closed_form, 4),),
    ),
    Mutant(
        name="padding takes pages",
        patches=((page_table, "num_pages", for_padding_too),),
        killed_by=(partial(paging.bytes_in_pages_are_the_closed_form, 4),),
    ),
    Mutant(
        name="budgets know nothing of pages",
        patches=((LayerPlan, "room_bytes", in_a_row),),
        killed_by=(partial(paging.bytes_asked_for_are_not_exceeded, "snapkv", 16),),
    ),
    Mutant(
        name="pages are not given back",
        patches=((PageTable, "give_back", never),),
        killed_by=(partial(paging.restoring_gives_pages_back, "baseline"),),
    ),
    Mutant(
        name="what lay in pages is lost when more come",
        patches=((PagedRoom, "grow", anew),),
        killed_by=(paging.a_growing_cache_keeps_its_pages,),
    ),
    Mutant(
        name="numbers are kept in fewer bits",
        patches=((Numbers, "encode", rounded),),
        killed_by=(partial(equal, 16),),
    ),
)
