"""What must hold where a decode step reads a few pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kvbench.cache.codecs.dense import Dense
from kvbench.cache.kv_cache import KVCache
from kvbench.cache.pages import Pages, Paging, upper_bounds
from kvbench.cache.plan import LayerPlan
from kvbench.cache.slots import Slots
from kvbench.kernels.attend import attend_one
from kvbench.models.view import view_of
from kvbench.strategies.reader.pages import ReadPages
from kvbench.types import DECODE, LayerShape, RunShape
from tests.support.checks import NEW, PROMPT, assert_close, uniform
from tests.support.drive import Driven, drive, padded, positions
from tests.support.models import WIDTH, attention, ids, model
from tests.support.page_loops import Loops, by_loops
from tests.support.parts import rand
from tests.support.steps import HOST, Recorder
from tests.support.storage import KV_HEADS, storages_are_exact_and_reported
from tests.support.strategies import strategy

SIZE, AMOUNT = 3, 9  # of the setting in tests/support/settings/readers.py


def equals_loops_over_pages(
    model_name: str,
    *,
    lengths: Sequence[int] = (PROMPT,),
    overrides: Sequence[str] = (),
    size: int = SIZE,
    most: Sequence[int] = (AMOUNT // SIZE,),
    name: str = "quest",
    skipped: Sequence[int] = (),
    new: int = NEW,
) -> None:
    """Logits of every row equal those of loops over pages of the row alone.

    Args:
        model_name: of the model.
        lengths: prompt tokens of each row.
        overrides: of the strategy's configuration.
        size: entries of a page.
        most: pages each row reads.
        name: of the method.
        skipped: layers that read everything.
        new: tokens that follow.
    """
    made = strategy(name, *overrides)
    texts = [ids(60 + row, 1, length + new)[0] for row, length in enumerate(lengths)]
    got = drive(model(model_name), made, padded(texts), RunShape(prompt_lengths=tuple(lengths), new_tokens=new))
    for row, (text, length, pages) in enumerate(zip(texts, lengths, most, strict=True)):
        loops = Loops(size=size, most=pages, prompt=length, skipped=skipped)
        if made.budget.limits:
            loops.survivors = _survivors(got, row)
        assert_close(got.logits[row, max(lengths) - length :], by_loops(model_name, text[None], loops)[0])
        read = [len(seen) for steps in loops.read.values() for seen in steps]
        assert min(read) < length, "everything was read: the comparison proves nothing"


def _survivors(driven: Driven, row: int) -> Callable[[int, int], list[int]]:
    def of(layer: int, group: int) -> list[int]:
        sets = positions(driven.held[0][layer][row])
        return sets[group % len(sets)]

    return of


def single_entries_are_exact_top_k(model_name: str) -> None:
    """Pages of one entry read the newest one and those with the largest logits, summed over a group's queries."""
    made = strategy("quest", "reader.size=1")
    tokens = ids(61, 1, PROMPT + NEW)
    got = drive(model(model_name), made, tokens, uniform())
    loops = Loops(size=1, most=AMOUNT, prompt=PROMPT, exact=True)
    assert_close(got.logits, by_loops(model_name, tokens, loops))


# -- worked examples --------------------------------------------------------------------------------------------------


def small_pages(keys: Tensor, size: int, most: int, *, new: int = 8) -> tuple[Pages, Slots]:
    """Return pages over a prompt's keys [1, G, n, D], and the slots that hold them."""
    shape = LayerShape(
        query_heads=keys.shape[1],
        kv_heads=keys.shape[1],
        key_dim=keys.shape[3],
        value_dim=keys.shape[3],
        window=0,
        rotary=None,
    )
    base = strategy("baseline")
    plan = LayerPlan(
        index=0,
        shape=shape,
        codec=Dense(),
        scorer=base.scorer,
        selector=base.selector,
        evicted=base.evicted,
        budget=None,
        period=0,
        by_rank=False,
        paging=Paging(size=size, most=(most,)),
    )
    run = RunShape(prompt_lengths=(keys.shape[2],), new_tokens=new)
    slots = Slots(Dense(), keys, keys, keys.shape[2] + new, heads=1, beside={})
    slots.append(keys, keys, torch.arange(keys.shape[2], dtype=torch.int32)[None, None])
    pages = Pages(plan, run, None, keys)
    pages.start(slots)
    return pages, slots


def worked_pages() -> None:
    """Two pages of two keys: the bounds are 4 and 3, though the largest logits are 1 and 3 and the means .5 and 1.5."""
    keys = torch.tensor([[1, -1], [-2, 3], [2, 1], [0, 0]], dtype=torch.float64)[None, None]
    query = torch.ones(1, 1, 1, 2, dtype=torch.float64)
    pages, slots = small_pages(keys, 2, 2)
    assert upper_bounds(query, pages.bounds[:, :, :2]).tolist() == [[[4.0, 3.0]]]
    newest = torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    slots.append(newest, newest, 4)
    (tile,) = pages.tiles(query, slots)  # the newest page and one more
    assert tile.visible is not None
    assert isinstance(tile.keys, torch.Tensor)
    read = {tuple(key) for key in tile.keys[tile.visible].tolist()}
    assert read == {(1.0, -1.0), (-2.0, 3.0), (0.0, 0.0)}


def bounds_hold() -> None:
    """No key of a page has more than its bound, whatever the query; nor is any bound looser than its page's."""
    for prompt, size in ((7, 3), (8, 4), (1, 5), (9, 1), (6, 2)):
        keys = rand(1, 2, prompt + 9, 5, seed=prompt)
        pages, slots = small_pages(keys[:, :, :prompt], size, 1, new=9)
        for newest in range(prompt, prompt + 9):
            key, query = keys[:, :, newest : newest + 1], rand(1, 4, 1, 5, seed=newest)
            slots.append(key, key, newest)
            pages.tiles(query, slots)
            starts = range(0, newest + 1, size)
            got = upper_bounds(query, pages.bounds[:, :, : len(starts)])
            for group in range(2):
                queries = query[0, 2 * group : 2 * group + 2, 0]
                for page, start in enumerate(starts):
                    inside = keys[0, group, start : min(start + size, newest + 1)]
                    low, high = inside.amin(dim=0), inside.amax(dim=0)
                    tight = sum(torch.maximum(q * low, q * high).sum().item() for q in queries)
                    assert got[0, group, page].item() >= (queries @ inside.T).sum(dim=0).max().item() - 1e-12
                    assert abs(got[0, group, page].item() - tight) < 1e-12


def planted_key_is_read() -> None:
    """Of a thousand small keys the one that fits the query is read, wherever it stands."""
    query = rand(1, 1, 1, 16, seed=3)
    for place in (0, 15, 16, 500, 990, 999):
        keys = rand(1, 1, 1000, 16, seed=4) * 0.05
        keys[0, 0, place] = query[0, 0, 0] * 3
        pages, slots = small_pages(keys, 16, 2)
        slots.append(keys[:, :, :1] * 0, keys[:, :, :1] * 0, 1000)
        tiles = pages.tiles(query, slots)
        assert sum(tile.keys.shape[2] for tile in tiles if isinstance(tile.keys, torch.Tensor)) == 32
        out, _ = attend_one(query, tiles, 1.0, with_weights=False)
        assert_close(out[0, 0, 0], query[0, 0, 0] * 3)


# -- identities -------------------------------------------------------------------------------------------------------


def reading_everything_is_the_baseline(model_name: str) -> None:
    """Bit for bit, whether the amount, the least pages or the skipped layers make it so; in padded rows too."""
    lengths = (PROMPT, 17)
    tokens = padded([ids(62 + row, 1, length + NEW)[0] for row, length in enumerate(lengths)])
    run = RunShape(prompt_lengths=lengths, new_tokens=NEW)
    base = drive(model(model_name), strategy("baseline"), tokens, run)
    for more in ("reader.amount=36", "reader.least_pages=12", "reader.skip_layers=[0,1]"):
        got = drive(model(model_name), strategy("quest", more), tokens, run)
        assert torch.equal(got.logits, base.logits), more


def a_restored_cache_forgets_what_followed(lengths: Sequence[int] = (PROMPT, PROMPT)) -> None:
    """After `restore` other tokens than before give what they give in a cache that never saw those."""
    run = RunShape(prompt_lengths=tuple(lengths), new_tokens=NEW)
    texts = [ids(64 + row, 1, length + NEW)[0] for row, length in enumerate(lengths)]
    tokens, other = padded(texts), padded([text.flip(0) for text in texts])[:, -NEW + 1 :]
    network, made = model("llama_gqa"), strategy("quest")
    straight = torch.cat([tokens[:, : PROMPT + 1], other], dim=1)
    want = drive(network, made, straight, run)
    cache = drive(network, made, tokens[:, : PROMPT + 1], run).cache
    saved = cache.snapshot()
    _decode(cache, tokens[:, PROMPT + 1 :])
    cache.restore(saved)
    assert torch.equal(_decode(cache, other), want.logits[:, PROMPT + 1 :])


def _decode(cache: KVCache, tokens: Tensor) -> Tensor:
    logits = []
    with attention(model("llama_gqa"), "kvbench") as network:
        for token in tokens.split(1, dim=1):
            cache.begin(DECODE)
            where = cache.position_ids(1)
            logits.append(network(token, past_key_values=cache, use_cache=True, position_ids=where).logits)
    return torch.cat(logits, dim=1)


# -- what it costs ----------------------------------------------------------------------------------------------------


def bytes_of_pages(
    model_name: str,
    lengths: Sequence[int] = (PROMPT, PROMPT),
    dtype: torch.dtype = torch.float64,
    overrides: Sequence[str] = (),
    most: Sequence[int] = (3, 3),
) -> None:
    """Two numbers per page, head and dimension are added; a step reads all of them, and the entries of a few pages."""
    made, rows = strategy("quest", *overrides), len(lengths)
    run, pads = RunShape(prompt_lengths=tuple(lengths), new_tokens=NEW), len(set(lengths)) > 1
    tokens = padded([ids(66 + row, 1, length + NEW)[0] for row, length in enumerate(lengths)])
    heads, layers = KV_HEADS.get(model_name, 2), 2
    page, entry = heads * 2 * WIDTH * dtype.itemsize, heads * 2 * WIDTH * dtype.itemsize + 4
    longest = max(lengths) + NEW
    want = layers * rows * (longest * entry + -(-longest // SIZE) * page)
    want += 4 * rows * pads + 8 * rows * layers * (len(set(most)) > 1)
    view = view_of(model(model_name, dtype))
    assert made.allocated_bytes(view, run) == want

    def watch(cache: KVCache, seen: int) -> None:
        held = [seen - max(lengths) + length for length in lengths]
        pages = [-(-count // SIZE) for count in held]
        used = layers * (sum(held) * entry + sum(pages) * page)
        assert cache.allocated_bytes() == want
        assert cache.used_bytes() == used == made.used_bytes(view, run, seen)
        skipped = [max(0, count - few) * SIZE for count, few in zip(pages, most, strict=True)]
        assert cache.read_bytes() == used - layers * sum(skipped) * entry
        storages_are_exact_and_reported(cache)

    drive(model(model_name, dtype), made, tokens, run, watch=watch)


def a_step_waits_for_nothing(lengths: Sequence[int] = (PROMPT, PROMPT)) -> None:
    """A decode step reads nothing on the host, and makes nothing anew that is as large as the keys held."""
    run = RunShape(prompt_lengths=tuple(lengths), new_tokens=NEW)
    tokens = padded([ids(67 + row, 1, length + NEW)[0] for row, length in enumerate(lengths)])
    made = strategy("quest", "reader.amount=3")
    cache = drive(model("llama_gqa"), made, tokens[:, : PROMPT + 4], run).cache
    for layer in cache.layers:
        key = rand(len(lengths), 2, 1, WIDTH)
        with Recorder() as recorder:
            layer.attend(rand(len(lengths), 4, 1, WIDTH, seed=1), key, key, 1.0, DECODE)
        assert not set(recorder.names) & set(HOST)
        assert recorder.largest < len(lengths) * 2 * (PROMPT + 4) * WIDTH * 8


def pages_are_counted_exactly() -> None:
    """A share of k hundredths of a hundred times sixteen tokens is k pages, never one less by rounding."""
    view = view_of(model("llama_gqa"))
    for hundredths in range(3, 101):
        reader = ReadPages(size=16, amount=hundredths / 100, unit="ratio", least_pages=3, skip_layers=(0,))
        run = RunShape(prompt_lengths=(1600, 160), new_tokens=1)
        assert reader.pagings(view, run) == [None, Paging(size=16, most=(hundredths, max(3, hundredths // 10)))]
    reader = ReadPages(size=16, amount=1000.0, unit="tokens", least_pages=3, skip_layers=())
    assert [paging.most for paging in reader.pagings(view, uniform(64)) if paging] == [(62,), (62,)]
