"""What must hold where sequences share pages: who holds which, which prefixes are there, what attention reads."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from kvbench.cache.codecs.base import as_bytes
from kvbench.cache.page_table import PagePool
from kvbench.cache.prefix_tree import Node, PrefixTree
from kvbench.cache.shared import Copy, Piece, SharedCache
from kvbench.models.view import view_of
from kvbench.strategies.base import CacheStrategy
from kvbench.types import RunShape
from tests.support.checks import assert_close
from tests.support.models import attention, ids, model
from tests.support.strategies import strategy

SIZE = 4
TREE_SIZES = (1, 3, 4)


def pages_are_nobodys_or_somebodys(operations: int = 1000) -> None:
    """After any takings, holdings and releases, a page is free if and only if nobody holds it, and none is lost."""
    rng, pool, held = random.Random(3), PagePool(12), list[list[int]]()
    for _ in range(operations):
        kind = rng.choice(("take", "hold", "release", "grow"))
        if kind == "take" and pool.free:
            held.append([pool.take()])
        elif kind == "hold" and held:
            held.append(list(rng.choice(held)))
            pool.hold(held[-1])
        elif kind == "release" and held:
            pool.release(held.pop(rng.randrange(len(held))))
        elif kind == "grow" and pool.num_pages < 24:
            pool.grow(pool.num_pages + 1)
        counts = Counter(page for pages in held for page in pages)
        assert pool.holders == [counts[page] for page in range(pool.num_pages)]
        assert sorted(pool.free) == [page for page in range(pool.num_pages) if not counts[page]]
        assert pool.taken == len(counts)
    for pages in held:
        pool.release(pages)
    assert pool.taken == 0


class _Written:
    """Pages whose slots hold the tokens that were written to them."""

    def __init__(self, size: int) -> None:
        self.size, self.slots = size, dict[int, list[int | None]]()

    def write(self, pages: Sequence[int], tokens: Sequence[int], start: int) -> None:
        for at in range(start, len(tokens)):
            self.slots.setdefault(pages[at // self.size], [None] * self.size)[at % self.size] = tokens[at]

    def copy(self, source: int, target: int, slots: int) -> None:
        self.slots[target] = [*self.slots[source][:slots], *[None] * (self.size - slots)]

    def read(self, pages: Sequence[int], count: int) -> list[int | None]:
        return [self.slots[pages[at // self.size]][at % self.size] for at in range(count)]


def the_tree_knows_all_prefixes_and_where_they_lie(size: int, operations: int = 400) -> None:
    """What is found is the longest prefix anybody has left and nobody has dropped, and its pages hold its tokens."""
    rng, pool, written = random.Random(size), PagePool(200), _Written(size)
    tree, known, locked = PrefixTree(pool, size), set[tuple[int, ...]](), list[Node]()
    for _ in range(operations):
        tokens = [rng.randrange(2) for _ in range(rng.randrange(1, 14))]
        longest = max((at for at in range(len(tokens) + 1) if tuple(tokens[:at]) in known), default=0)
        assert tree.length(tokens) == longest
        node = tree.find(tokens)
        pages = tree.pages_of(node)
        assert node.stop == longest
        assert written.read(pages, longest) == tokens[:longest]
        pool.hold(pages)
        mine = pages[: longest // size]
        while len(mine) * size < len(tokens):
            mine.append(pool.take())
        if longest % size:
            written.copy(pages[longest // size], mine[longest // size], longest % size)
            pool.hold([])
        written.write(mine, tokens, longest)
        leaf = tree.insert(tokens, mine)
        assert leaf.stop == len(tokens)
        pool.release(pages)
        pool.release(mine[longest // size :])
        known |= {tuple(tokens[:at]) for at in range(1, len(tokens) + 1)}
        if rng.random() < 0.2:
            tree.lock(leaf)
            locked.append(leaf)
        elif locked and rng.random() < 0.2:
            tree.unlock(locked.pop(rng.randrange(len(locked))))
        if rng.random() < 0.1:
            could = len(pool.free) + tree.evictable()
            tree.evict(pool.num_pages - rng.randrange(8))
            assert could >= len(pool.free)
            known = _prefixes(tree)
            assert all(tuple(_path(node)) in known for node in locked)
        _assert_held(tree, pool)
    for node in locked:
        tree.unlock(node)
    assert tree.evictable() == pool.taken
    tree.evict(pool.num_pages)
    assert (pool.taken, tree.num_tokens) == (0, 0)


def _prefixes(tree: PrefixTree) -> set[tuple[int, ...]]:
    return {tuple(_path(node)[:at]) for node in tree._nodes() for at in range(1, node.stop + 1)}


def _path(node: Node) -> list[int]:
    return [token for each in reversed(list(node.path())) for token in each.tokens]


def _assert_held(tree: PrefixTree, pool: PagePool) -> None:
    counts = Counter(page for node in tree._nodes() for page in node.pages)
    assert pool.holders == [counts[page] for page in range(pool.num_pages)]


def least_recently_used_go_first() -> None:
    """Of leaves that nobody needs, the one that was found longest ago goes; a path that somebody needs stays."""
    pool = PagePool(8)
    tree = PrefixTree(pool, 2)
    leaves = []
    for first in range(3):
        pages = [pool.take(), pool.take()]
        leaves.append(tree.insert([first, 9, 9, 9], pages))
        pool.release(pages)
    tree.find([0, 9, 9, 9])
    tree.lock(leaves[1])
    tree.evict(4)
    assert [tree.length([first, 9, 9, 9]) for first in range(3)] == [4, 4, 0]
    tree.evict(8)
    assert [tree.length([first, 9, 9, 9]) for first in range(3)] == [0, 4, 0]


def shared(name: str, codec: str = "dense", pages: int = 40) -> SharedCache:
    """Return a cache of pages that are filled with what is no number."""
    made, view = in_pages(codec), view_of(model(name))
    cache = SharedCache(made.plans(view, RunShape(prompt_lengths=(1,), new_tokens=1)), view, pages)
    for layer in cache.layers:
        for room in (kept for each in layer.rooms for kept in each.kept):
            as_bytes(room).fill_(255 if room.dtype.itemsize == 1 else torch.nan)
    return cache


def in_pages(codec: str, size: int = SIZE) -> CacheStrategy:
    """Return the full cache in pages of so many slots."""
    return strategy("paged", f"layout.page_tokens={size}", f"strategy/codec={codec}")


def _read(name: str, cache: SharedCache, tokens: Tensor) -> Tensor:
    with attention(model(name), "kvbench"):
        out: Tensor = model(name)(
            tokens[None], past_key_values=cache, use_cache=True, position_ids=cache.position_ids
        ).logits[0]
    return out


def a_pass_reads_each_sequence_alone(name: str, codec: str) -> None:
    """Sequences in pages in any order, in pieces of any length, give the logits that each gives alone."""
    rng, cache = random.Random(5), shared(name, codec)
    texts = [ids(70 + row, 1, length)[0] for row, length in enumerate((13, 1, 9, 6))]
    free = rng.sample(range(40), 40)
    pages = [[free.pop() for _ in range(-(-len(text) // SIZE))] for text in texts]
    done, found = [0] * len(texts), [list[Tensor]() for _ in texts]
    while any(at < len(text) for at, text in zip(done, texts, strict=True)):
        going = [row for row, text in enumerate(texts) if done[row] < len(text)]
        takes = {row: min(rng.choice((1, 1, 2, 5)), len(texts[row]) - done[row]) for row in going}
        cache.begin([Piece(pages=pages[row], start=done[row], tokens=takes[row]) for row in going])
        new = torch.cat([texts[row][done[row] : done[row] + takes[row]] for row in going])
        for row, logits in zip(going, _read(name, cache, new).split(list(takes.values())), strict=True):
            found[row].append(logits)
            done[row] += takes[row]
    for row, text in enumerate(texts):
        alone = shared(name, codec)
        alone.begin([Piece(pages=list(range(len(pages[row]))), start=0, tokens=len(text))])
        assert_close(torch.cat(found[row]), _read(name, alone, text))
    if codec == "dense":
        with attention(model(name), "sdpa"):
            assert_close(torch.cat(found[0]), model(name)(texts[0][None]).logits[0])


def a_fork_leaves_its_parent_as_it_is(name: str, codec: str) -> None:
    """A sequence that goes on from the middle of a page writes to a copy of it, and reads what the parent has read."""
    text, other = ids(80, 1, 12)[0], ids(81, 1, 3)[0]
    cache, begins = shared(name, codec), 6  # in the middle of a page
    cache.begin([Piece(pages=[3, 1, 0], start=0, tokens=10)])
    _read(name, cache, text[:10])
    before = [kept.clone() for layer in cache.layers for room in layer.rooms for kept in room.kept]
    fork = Piece(pages=[3, 7], start=begins, tokens=2)
    cache.begin([fork], [Copy(source=1, target=7, slots=begins % SIZE)])
    forked = _read(name, cache, other[:2])
    after = [kept for layer in cache.layers for room in layer.rooms for kept in room.kept]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(as_bytes(old)[[3, 1, 0]], as_bytes(new)[[3, 1, 0]])
    alone = shared(name, codec)
    alone.begin([Piece(pages=[0, 1], start=0, tokens=begins + 2)])
    assert_close(forked, _read(name, alone, torch.cat([text[:begins], other[:2]]))[begins:])


def a_prefix_may_be_read_in_the_pass_that_stores_it(name: str, codec: str) -> None:
    """A sequence goes on from what another one stores in the same pass, whole pages and a part of one."""
    text, other = ids(82, 1, 10)[0], ids(83, 1, 5)[0]
    cache, begins = shared(name, codec), 6
    first = Piece(pages=[5, 6, 7], start=0, tokens=10)
    second = Piece(pages=[5, 8, 9], start=begins, tokens=5)
    cache.begin([first, second], [Copy(source=6, target=8, slots=begins % SIZE)])
    found = _read(name, cache, torch.cat([text, other]))[10:]
    alone = shared(name, codec)
    alone.begin([Piece(pages=[0, 1, 2], start=0, tokens=begins + 5)])
    assert_close(found, _read(name, alone, torch.cat([text[:begins], other]))[begins:])


def pool_bytes_are_the_closed_form(codec: str) -> None:
    """All storages of a pool are what the strategy says of so many pages, and a page its share."""
    made, view = in_pages(codec), view_of(model("llama_gqa"))
    cache = shared("llama_gqa", codec, pages=10)
    assert cache.allocated_bytes() == made.pool_bytes(view, 10) == 10 * cache.page_bytes
