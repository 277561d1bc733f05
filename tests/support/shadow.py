"""What must hold where the keys of what has left are of low rank, and chunks are told apart by their means."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from kvbench.cache.kv_cache import KVCache
from kvbench.cache.landmarks import Landmarks
from kvbench.cache.low_rank import LowRankKeys
from kvbench.cache.placement.tiers import Traffic
from kvbench.cache.views import Leaving, PromptView
from kvbench.models.view import view_of
from kvbench.strategies.selection.whole_chunks import WholeChunks
from kvbench.types import LayerShape, ModelView, RunShape, Sizes
from tests.support.checks import BUDGET, NEW, PROMPT, assert_close, uniform
from tests.support.drive import drive, padded
from tests.support.models import LAYERS, ids, model
from tests.support.page_loops import by_loops
from tests.support.parts import rand
from tests.support.shadow_loops import ShadowLoops, some_are_not_read
from tests.support.strategies import composed, strategy

SIZE, MOST, RANK, RECENT = 3, 2, 12, 5  # of the setting in tests/support/settings/readers.py
ON_DISK = ("evicted.host=0.0",)
NAME = "shadowkv"


def equals_loops(model_name: str, *overrides: str, lengths: Sequence[int] = (PROMPT,)) -> None:
    """Logits of every row equal those of loops over chunks of the row alone, with keys cut by their singular values."""
    made = strategy(NAME, *overrides, tokens=BUDGET)
    texts = [ids(170 + row, 1, length + NEW)[0] for row, length in enumerate(lengths)]
    got = drive(model(model_name), made, padded(texts), RunShape(prompt_lengths=tuple(lengths), new_tokens=NEW))
    frequency = view_of(model(model_name)).layers[0].rotary
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        loops = ShadowLoops(
            size=SIZE, most=MOST, rank=RANK, budget=BUDGET, recent=RECENT, prompt=length, frequency=frequency
        )
        assert_close(got.logits[row, max(lengths) - length :], by_loops(model_name, text[None], loops)[0])
        assert any(some_are_not_read(read, length) for read in loops.read.values()), "everything was read"


def all_of_full_rank_is_the_full_cache(model_name: str) -> None:
    """Where keys lose nothing and all chunks are read, logits are the full cache's, to rounding."""
    texts = [ids(173 + row, 1, length + NEW)[0] for row, length in enumerate((PROMPT, 17))]
    run = RunShape(prompt_lengths=(PROMPT, 17), new_tokens=NEW)
    made = strategy(NAME, "evicted.rank=1000", "reader.amount=100", tokens=BUDGET)
    got, want = (drive(model(model_name), each, padded(texts), run).logits for each in (made, strategy("baseline")))
    for row, pad in enumerate(run.padding):
        assert_close(got[row, pad:], want[row, pad:])


def keys_are_the_nearest_of_their_rank(model_name: str, rank: int) -> None:
    """What is lost of the keys of a prompt is what their discarded singular values say, row by row."""
    shape = view_of(model(model_name)).layers[0]
    heads, dim, tokens = shape.kv_heads, shape.key_dim, 40
    plan = composed(NAME).plans(view_of(model(model_name)), uniform(tokens, rows=2))[0]
    keys, position = rand(2, heads, tokens, dim, seed=4), torch.arange(tokens).expand(2, 1, -1).int()
    index = torch.zeros(2, heads, 0, dtype=torch.int64)
    low = LowRankKeys(plan, uniform(tokens, rows=2), keys, rank)
    low.take(Leaving(keys=keys, values=keys, position=position, score=keys[..., 0], index=index, layer=0))
    lost = low.at(position.expand(-1, heads, -1)) - keys
    loops = ShadowLoops(size=1, most=1, rank=0, budget=1, recent=1, prompt=tokens, frequency=shape.rotary)
    for row in range(2):
        flat = loops._turned(keys[row], -1).transpose(0, 1).flatten(1)
        want = torch.linalg.svdvals(flat)[rank:].square().sum()
        assert_close(lost[row].square().sum(), want)
        assert want > 1, "nothing is lost: this proves nothing"


def landmarks_are_means() -> None:
    """A chunk is worth the largest share of any query's attention among the mean keys; other rows change nothing."""
    keys, queries = rand(2, 2, 6, SIZE, 8, seed=5), rand(2, 6, 1, 8, seed=6)
    index = Landmarks(keys[:, :, 0], 4)
    index.put(0, keys[:, :, :4], keys[:, :, :4, :, 0])
    index.grow(6)
    index.put(4, keys[:, :, 4:], keys[:, :, 4:, :, 0])
    loops = ShadowLoops(size=SIZE, most=MOST, rank=0, budget=1, recent=1, prompt=15, frequency=None)
    chunks = [list(range(at * SIZE, (at + 1) * SIZE)) for at in range(5)]
    for row in range(2):
        for head in range(2):
            chosen = index.choose(queries, 5, MOST)[row, head].tolist()
            mine = queries[row, 3 * head : 3 * head + 3, 0].tolist()
            want = loops.best(mine, keys[row, head].flatten(0, 1), chunks)
            assert sorted(token for at in chosen for token in chunks[at]) == want


def a_planted_chunk_is_read() -> None:
    """The chunk whose keys one query of the group asks for is read, whatever the others ask for."""
    keys = torch.zeros(1, 1, 5, SIZE, 8)
    keys[0, 0, 3, :, 2], keys[0, 0, 1, :, 5] = 40.0, 4.0
    queries = torch.zeros(1, 3, 1, 8)
    queries[0, 0, 0, 2] = queries[0, 1:, 0, 5] = 1.0
    queries[0, 1:, 0, 2] = -9.0
    index = Landmarks(keys[:, :, 0], 5)
    index.put(0, keys, keys[..., 0])
    assert index.choose(queries, 5, 1).tolist() == [[[3]]]


def planted_outliers_stay(lengths: Sequence[int] = (PROMPT, 20)) -> None:
    """Chunks of like keys leave; those with one key unlike its neighbours stay, head by head."""
    made, longest = strategy(NAME, tokens=BUDGET), max(lengths)
    keys = rand(len(lengths), 2, longest, 1, seed=7).abs() + torch.ones(8)
    planted = {(0, 0): (1, 4), (0, 1): (0, 3), (1, 0): (2, 3), (1, 1): (0, 1)}
    for (row, head), chunks in planted.items():
        for chunk in chunks:
            keys[row, head, longest - lengths[row] + chunk * SIZE + 1] *= -1
    pads = torch.tensor([longest - length for length in lengths])[:, None]
    position = (torch.arange(longest) - pads).clamp(min=-1)[:, None].int()
    score = made.scorer.prompt(_view(keys, position))
    index, _ = made.selector.keep(score, position, (BUDGET,) * len(lengths), lengths)
    for (row, head), chunks in planted.items():
        tokens = [chunk * SIZE + at for chunk in chunks for at in range(SIZE)]
        recent = range(lengths[row] - RECENT - 1, lengths[row])
        assert position[row, 0, index[row, head]].tolist() == [*tokens, *recent]


def chunks_are_kept_whole() -> None:
    """What stays is a run of recent tokens, sinks and whole chunks, those with the best scores; ties included."""
    generator = torch.Generator().manual_seed(3)
    for trial in range(60):
        size, length, budget = 1 + trial % 4, 19 + trial % 5, 11 + trial % 7
        sinks, recent = size * (trial % 2), trial % 6
        selector = WholeChunks(num_sink=sinks, num_recent=recent, recent_share=0.0, size=size)
        score = torch.randint(0, 5, (1, 2, length), generator=generator).double()
        index, _ = selector.keep(score, torch.arange(length)[None, None], (budget,), (length,))
        while (budget - sinks - recent) % size > 0:
            recent += 1
        first = length - recent
        chunks = [range(at, at + size) for at in range(sinks, first - size + 1, size)]
        for head in range(2):
            best = sorted(chunks, key=lambda c: (max(score[0, head, list(c)].tolist()), c[0]), reverse=True)
            kept = [at for chunk in best[: (budget - sinks - recent) // size] for at in chunk]
            assert index[0, head].tolist() == sorted([*range(sinks), *kept, *range(first, length)])


def only_values_move() -> None:
    """Values go down once, page by page; what comes up are the values of pages a step read that were not at hand."""
    made, network = strategy(NAME, tokens=BUDGET), model("llama_gqa")
    view = view_of(network)
    shape = view.layers[0]
    page, lines = SIZE * shape.value_dim * view.dtype.itemsize, 2 * shape.kv_heads * LAYERS
    seen: list[Traffic] = []

    def watch(cache: KVCache, columns: int) -> None:
        seen.append(cache.traffic())
        assert seen[-1].up == (seen[-1].asked - seen[-1].hits) * page
        assert seen[-1].down == (PROMPT - BUDGET) // SIZE * page * lines

    drive(network, made, ids(174, 2, PROMPT + NEW), uniform(rows=2), watch=watch)
    steps = [(late.asked - early.asked, late.hits - early.hits) for early, late in pairwise(seen)]
    assert all(asked == lines * MOST for asked, _ in steps)
    assert any(0 < hits < asked for asked, hits in steps), "all or nothing was at hand: this proves nothing"


def bytes_lie_where_they_were_said_to(where: Sequence[str]) -> None:
    """Bytes on the device, with the host and on disk are the closed forms, written out here once more."""
    made, view = strategy(NAME, *where, tokens=BUDGET), view_of(model("llama_gqa"))
    shape, number = view.layers[0], view.dtype.itemsize
    run = RunShape(prompt_lengths=(PROMPT, 17), new_tokens=NEW)
    texts = [ids(175 + row, 1, length + NEW)[0] for row, length in enumerate(run.prompt_lengths)]
    heads, dim, want, values = shape.kv_heads, shape.key_dim, 0, 0
    for length in run.prompt_lengths:
        pages = (length - BUDGET) // SIZE
        slots = (BUDGET + NEW) * heads * (2 * dim * number + 4)  # keys, values, and a position
        newest = heads * SIZE * (2 * dim + 1)  # keys, values, and a score
        beside = (length + heads * dim) * RANK + pages * heads * dim + newest
        want += LAYERS * (slots + number * (beside + min(pages, MOST) * heads * SIZE * dim))
        values += LAYERS * pages * heads * SIZE * dim * number

    def watch(cache: KVCache, columns: int) -> None:
        said = made.bytes_elsewhere(view, run)
        assert (cache.bytes_on("host"), cache.bytes_on("disk")) == (said.host, said.disk)
        assert said.disk == (values if where == ON_DISK else 0)
        assert cache.allocated_bytes() == made.allocated_bytes(view, run) == want + 4 * len(texts)  # their padding
        held = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in cache.tensors()}.values())
        assert held == cache.allocated_bytes() + cache.bytes_on("host")

    drive(model("llama_gqa"), made, padded(texts), run, watch=watch)


def bytes_fall_as_claimed() -> None:
    """Of a long prompt of Llama-3.1-8B (160 + 1024 / 8) / 2048 of the bytes stay, and what is read or exact."""
    shape = LayerShape(query_heads=32, kv_heads=8, key_dim=128, value_dim=128, window=0, rotary=torch.ones(64))
    view = ModelView(
        layers=(shape,) * 32,
        sizes=Sizes(weights_bytes=0, hidden=4096, intermediate=14336, vocabulary=128256),
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
        max_positions=131072,
        has_learned_positions=False,
    )
    for tokens in (32768, 122880):
        run = RunShape(prompt_lengths=(tokens,), new_tokens=64)
        kept, full = (made.allocated_bytes(view, run) for made in (composed(NAME), composed("baseline")))
        read = (416 + 64 + 2048 / 2) / tokens  # what stays, new tokens, values at hand
        assert abs(kept / full - (160 + 1024 / 8) / 2048 - read) < 160 / 2 / tokens + 0.001  # directions; positions


def _view(keys: Tensor, position: Tensor) -> PromptView:
    shape = LayerShape(query_heads=2, kv_heads=2, key_dim=8, value_dim=8, window=0, rotary=None)
    return PromptView(
        layer=0,
        shape=shape,
        query=keys,
        keys=keys,
        values=keys,
        position=position,
        query_position=position[:, 0],
        scale=1.0,
        budget=(BUDGET,) * len(keys),
    )
