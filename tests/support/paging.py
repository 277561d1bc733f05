"""What must hold where slots lie in pages: attention finds them in any order, and nobody pays for more."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from kvbench.cache import plan
from kvbench.cache.codecs.base import as_bytes
from kvbench.cache.page_table import PagePool, PageTable
from kvbench.cache.paged import PagedRoom
from kvbench.kernels.attend import EMPTY
from kvbench.models.view import view_of
from kvbench.strategies.base import CacheStrategy
from kvbench.types import RunShape
from tests.support.checks import BUDGET, NEW, PROMPT, assert_close, assert_same_held, drive_rows, uniform
from tests.support.drive import Driven, drive, padded
from tests.support.models import LAYERS, WIDTH, attention, ids, model
from tests.support.storage import storages_are_exact_and_reported
from tests.support.strategies import strategy

RAGGED = (PROMPT, 17, 3)
KV_HEADS, INDEX, POSITION = 2, 4, 4  # of the model; bytes of a page in a table, and of what stands beside an entry
COMPOSED = (  # with what else entries in pages go
    ("h2o",),
    ("snapkv",),
    ("sliding_window",),
    ("attention_sink",),
    ("adakv",),
    ("baseline", "strategy/codec=int8"),
    ("baseline", "strategy/codec=fp8"),
    ("h2o", "strategy/codec=int8"),
    ("snapkv", "strategy/codec=int4"),
    ("gqa",),
    ("yoco",),
)


@contextmanager
def in_disorder(seed: int, fill: float = torch.nan) -> Iterator[None]:
    """Hand out free pages in any order, and fill them with what is no number, or with one that nobody wrote."""
    grow, allocate = PagePool.grow, PagedRoom._allocate

    def shuffled(self: PagePool, pages: int) -> None:
        grow(self, pages)
        random.Random(seed).shuffle(self.free)

    def filled(self: PagedRoom, like: Tensor, pages: int) -> None:
        allocate(self, like, pages)
        for room in self.kept:
            as_bytes(room).fill_(255 if room.dtype.itemsize == 1 else fill)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PagePool, "grow", shuffled)
        patch.setattr(PagedRoom, "_allocate", filled)
        yield


def in_pages(name: str, size: int, *overrides: str) -> CacheStrategy:
    """Return a method whose slots lie in pages of so many."""
    return strategy(name, *overrides, "strategy/layout=paged", f"layout.page_tokens={size}", tokens=BUDGET)


def _same(want: Driven, got: Driven, lengths: Sequence[int]) -> None:
    for row, length in enumerate(lengths):
        first = max(lengths) - length
        assert_close(got.logits[row, first:], want.logits[row, first:])
    assert_same_held(got.held, want.held)


def pages_equal_slots_in_a_row(
    model_name: str,
    size: int,
    *overrides: str,
    name: str = "baseline",
    lengths: Sequence[int] = (PROMPT, PROMPT),
    new: int | None = NEW,
    chunks: Sequence[int] = (),
    steps: Sequence[int] = (),
) -> None:
    """Logits, and what is held, are those of slots one behind the other."""
    want = drive_rows(strategy(name, *overrides, tokens=BUDGET), model_name, lengths, chunks=chunks, steps=steps)
    with in_disorder(size):
        made = in_pages(name, size, *overrides)
        got = drive_rows(made, model_name, lengths, new=new, chunks=chunks, steps=steps)
    _same(want, got, lengths)


def bytes_in_pages_are_the_closed_form(size: int) -> None:
    """Storages, and what is said of them, are whole pages for each row's own tokens, and a table."""
    made, run = in_pages("baseline", size), RunShape(prompt_lengths=RAGGED, new_tokens=NEW)
    cache = drive_rows(made, "llama_gqa", RAGGED).cache
    columns = -(-(max(RAGGED) + NEW) // size)
    pages = sum(columns - (max(RAGGED) - length) // size for length in RAGGED)
    beside = len(RAGGED) * (columns * INDEX + (max(RAGGED) + NEW) * POSITION)
    want = LAYERS * (pages * size * 2 * KV_HEADS * WIDTH * 8 + beside) + len(RAGGED) * 4
    assert cache.allocated_bytes() == made.allocated_bytes(view_of(model("llama_gqa")), run) == want
    storages_are_exact_and_reported(cache)
    held = sum(length + NEW for length in RAGGED)
    assert cache.page_utilisation() == pytest.approx(held / (pages * size))


def bytes_asked_for_are_not_exceeded(name: str, size: int, amount: int = 40_000) -> None:
    """A budget in bytes counts whole pages, and one more of them would not fit."""
    made = in_pages(name, size, "budget.unit=bytes", f"budget.amount={amount}")
    rows = (40, 40)
    cache = drive_rows(made, "llama_gqa", rows).cache
    page = LAYERS * len(rows) * size * (2 * KV_HEADS * WIDTH * 8 + 3 * POSITION)  # position and score beside an entry
    assert amount - page <= cache.allocated_bytes() <= amount


def pages_are_taken_when_they_are_needed(size: int = 4) -> None:
    """A page is taken by the first token that needs it, and one that nobody reads never is."""
    taken: list[int] = []
    run = RunShape(prompt_lengths=RAGGED, new_tokens=NEW)
    text = padded([ids(row, 1, length + NEW)[0] for row, length in enumerate(RAGGED)])

    def look(cache: object, seen: int) -> None:
        (_, store) = cache.layers[0].stores[0]  # type: ignore[attr-defined]
        taken.append(store.slots.table.slots_taken // size)

    drive(model("llama_gqa"), in_pages("baseline", size), text, run, watch=look)
    empty = sum((max(RAGGED) - length) // size for length in RAGGED)
    assert taken == [len(RAGGED) * -(-(max(RAGGED) + step) // size) - empty for step in range(NEW + 1)]


def pages_are_used_well(size: int = 16, least: float = 0.96, longer: int = 400) -> None:
    """Behind so many tokens, all but a few of the slots of all pages taken hold entries, and never a page too many."""
    table = PageTable(size, 3 * longer, (0,), torch.device("cpu"))
    for tokens in range(longer + 1, 3 * longer):
        table.reserve(tokens)
        assert table.slots_taken - tokens < size
        assert tokens / table.slots_taken > least
    text = ids(1, 2, 100).repeat(1, 5)[:, : longer + 1 + NEW]
    run = uniform(longer + 1, rows=2)
    share = drive(model("llama_gqa"), in_pages("baseline", size), text, run).cache.page_utilisation()
    held = longer + 1 + NEW
    assert share == pytest.approx(held / (-(-held // size) * size))
    assert share is not None
    assert share > least


def pages_of_a_row_are_neighbours(size: int = 4, unused: Sequence[int] = (0, 9, 3), tokens: int = 30) -> None:
    """What a row takes at once lies in a row, and it takes the pages in which a loop over its slots finds any read."""
    table = PageTable(size, 2 * tokens, unused, torch.device("cpu"))
    table.reserve(tokens)
    for pages, first in zip(table.index.tolist(), unused, strict=True):
        read = {slot // size for slot in range(first, tokens)}
        assert {column for column, page in enumerate(pages) if page != EMPTY} == read
        mine = [pages[column] for column in sorted(read)]
        assert mine == list(range(mine[0], mine[0] + len(mine)))
    held = table.index[table.index != EMPTY].tolist()
    assert len(held) == len(set(held)) == table.pool.taken


def restoring_gives_pages_back(name: str, *overrides: str) -> None:
    """After a snapshot is restored the same tokens give the same logits, from the same pages."""
    tokens, text = (PROMPT, PROMPT), ids(7, 2, PROMPT + NEW)
    found: list[list[Tensor]] = [[], []]
    with in_disorder(1):
        made, kept = in_pages(name, 4, *overrides), model("llama_gqa")
        driven = drive(kept, made, text[:, : PROMPT + 2], RunShape(prompt_lengths=tokens, new_tokens=2 * NEW))
        cache = driven.cache
        before, slots = cache.snapshot(), [store.slots.table for layer in cache.layers for _, store in layer.stores]
        taken = [table.slots_taken for table in slots if table is not None]
        for logits in found:
            for at in range(PROMPT + 2, PROMPT + NEW):
                logits.append(_step(cache, text[:, at : at + 1]))
            cache.restore(before)
            assert [table.slots_taken for table in slots if table is not None] == taken
    assert torch.equal(torch.stack(found[0]), torch.stack(found[1]))


def _step(cache: object, token: Tensor) -> Tensor:
    with attention(model("llama_gqa"), "kvbench") as kept:
        where = cache.position_ids(1)  # type: ignore[attr-defined]
        out: Tensor = kept(token, past_key_values=cache, use_cache=True, position_ids=where).logits
    return out


def a_growing_cache_keeps_its_pages() -> None:
    """Where nobody knows how much will follow, more pages come and the old ones stay where they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "GROW_LEAST", 4)
        pages_equal_slots_in_a_row("llama_gqa", 4, lengths=(3, 5), new=None)
        pages_equal_slots_in_a_row("llama_gqa", 3, "strategy/codec=int8", new=None)


def the_native_kernel_reads_pages(dtype: torch.dtype, tolerance: float) -> None:
    """In the dtypes it computes in, the native kernel says what slots in a row say."""
    kept = model("llama_gqa", dtype)
    text, run = ids(3, 2, PROMPT + NEW), uniform(rows=2)
    want = drive(kept, strategy("baseline"), text, run)
    with in_disorder(2):
        made = in_pages("baseline", 16)
        assert made.kernel_on(torch.device("cpu"), dtype) == "native"
        got = drive(kept, made, text, run)
    assert (got.logits - want.logits).abs().max() <= tolerance * want.logits.abs().max()
