"""Shared pages with one thing wrong each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from kvbench.cache.page_table import PagePool
from kvbench.cache.paged import PagedRoom
from kvbench.cache.prefix_tree import Node, PrefixTree
from kvbench.cache.shared import Copy, Piece, SharedCache, SharedLayer
from kvbench.strategies.base import CacheStrategy
from kvbench.types import ModelView
from tests.mutants.core_mutant import Mutant
from tests.support import common_pages

release, walk, split, begin, pool_bytes = (
    PagePool.release,
    PrefixTree._walk,
    PrefixTree._split,
    SharedCache.begin,
    CacheStrategy.pool_bytes,
)


def at_once(self: PagePool, pages: Iterable[int]) -> None:
    """Free pages that others hold."""
    for page in pages:
        self.holders[page] -= 1
        self.free.append(page)


def as_it_goes(self: PrefixTree, tokens: Sequence[int]) -> Node:
    """Split runs while walking over them."""
    self._clock += 1
    node = self.root
    for child, shared in self._walk(tokens):
        node = child if shared == len(child.tokens) else self._split(child, shared)
        node.used = self._clock
    return node


def held_by_one(self: PrefixTree, node: Node, count: int) -> Node:
    """Let one of two runs hold the page between them."""
    middle = (node.start + count) % self.size
    upper = split(self, node, count)
    if middle:
        self.pool.release(upper.pages[-1:])
    return upper


def of_any_use(self: PrefixTree, pages: int) -> None:
    """Drop the leaf that was used last."""
    while len(self.pool.free) < pages:
        leaves = [node for node in self._nodes() if not node.children and node.locks == 0]
        if not leaves:
            return
        self._drop(max(leaves, key=lambda leaf: leaf.used))


def from_the_first(self: PrefixTree, node: Node) -> list[int]:
    """Take the page between two runs from the upper one."""
    pages: list[int] = []
    for each in reversed(list(node.path())):
        pages += each.pages[-(-each.start // self.size) - each.start // self.size :]
    return pages


def no_copies(self: SharedCache, pieces: Sequence[Piece], copies: Sequence[Copy] = ()) -> None:
    """Leave copies out."""
    begin(self, pieces)


def copied_too_early(self: SharedCache, pieces: Sequence[Piece], copies: Sequence[Copy] = ()) -> None:
    """Copy before the pass."""
    for room in (room for layer in self.layers for room in layer.rooms):
        for copy in copies:
            room.copy(copy.source, copy.target, copy.slots)
    begin(self, pieces)


def uncleared(self: PagedRoom, pages: object) -> None:
    """Leave in a page what lay there."""


def to_the_source(self: PagedRoom, source: int, target: int, slots: int) -> None:
    """Copy the wrong way."""
    for room in self.kept:
        room[source, :, :slots] = room[target, :, :slots]


def without_keys(self: CacheStrategy, view: ModelView, pages: int) -> int:
    """Count values alone."""
    return pool_bytes(self, view, pages) // 2


def all_rooms_twice(self: SharedLayer) -> Iterator[PagedRoom]:
    """Count rooms of keys twice."""
    yield from (self.keys, self.keys)


fork = partial(common_pages.a_fork_leaves_its_parent_as_it_is, "llama_gqa", "dense")
in_pass = partial(common_pages.a_prefix_may_be_read_in_the_pass_that_stores_it, "llama_gqa", "dense")
tree = partial(common_pages.the_tree_knows_all_prefixes_and_where_they_lie, 3)
MUTANTS = (
    Mutant(
        name="pages are freed at once",
        patches=((PagePool, "release", at_once),),
        killed_by=(common_pages.pages_are_nobodys_or_somebodys,),
    ),
    Mutant(name="runs are split on the way", patches=((PrefixTree, "find", as_it_goes),), killed_by=(tree,)),
    Mutant(name="one run holds a common page", patches=((PrefixTree, "_split", held_by_one),), killed_by=(tree,)),
    Mutant(name="a common page is the upper's", patches=((PrefixTree, "pages_of", from_the_first),), killed_by=(tree,)),
    Mutant(
        name="most recently used go first",
        patches=((PrefixTree, "evict", of_any_use),),
        killed_by=(common_pages.least_recently_used_go_first,),
    ),
    Mutant(name="nothing is copied", patches=((SharedCache, "begin", no_copies),), killed_by=(fork, in_pass)),
    Mutant(
        name="copies come first",
        patches=((SharedCache, "begin", copied_too_early),),
        killed_by=(in_pass,),
    ),
    Mutant(name="copies go the wrong way", patches=((PagedRoom, "copy", to_the_source),), killed_by=(fork,)),
    Mutant(
        name="what lay in a page is read",
        patches=((PagedRoom, "clear", uncleared),),
        killed_by=(partial(common_pages.a_pass_reads_each_sequence_alone, "llama_gqa", "dense"),),
    ),
    Mutant(
        name="keys are not counted",
        patches=((CacheStrategy, "pool_bytes", without_keys),),
        killed_by=(partial(common_pages.pool_bytes_are_the_closed_form, "int8"),),
    ),
)
