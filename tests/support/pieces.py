"""What must hold where a prompt is packed piece by piece: a piece finds what came before it packed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kvbench.cache.codecs.base import Payload
from kvbench.cache.kv_cache import KVCache
from kvbench.cache.layer import CacheLayer
from kvbench.engines.eager import Eager, forward
from kvbench.kernels.attend import attend_prompt, attend_runs
from kvbench.models.view import view_of
from kvbench.strategies.base import CacheStrategy
from kvbench.types import DECODE, PREFILL, PREFILL_CHUNK, RunShape, Step
from tests.support.checks import NEW, PROMPT, assert_close, assert_same_held, uniform
from tests.support.drive import drive, padded
from tests.support.models import attention, ids, model
from tests.support.strategies import strategy

IN_PIECES = "strategy/trigger=every_chunk"
METHODS = ("quantization_8bit", "kivi2", "kvquant3", "quarot", "turboquant4", "polarquant", "qjl", "lorc")
CUTS = ((7, 1, 13, 3), (1, 1, 1, 21), (23, 1), (8, 8, 8), (2, 20, 1, 1))
SCALE = 0.35


def packs(name: str, *overrides: str) -> CacheStrategy:
    """Return a method that packs piece by piece."""
    return strategy(name, IN_PIECES, *overrides)


def layer_of(made: CacheStrategy, run: RunShape) -> CacheLayer:
    """Return the first layer of an empty cache."""
    found = made.build(view_of(model("llama_gqa")), run).layers[0]
    assert isinstance(found, CacheLayer)
    return found


def entries(rows: int, tokens: int = PROMPT) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries [rows, 4, tokens, 8], keys [rows, 2, tokens, 8] and values as large."""
    random = torch.Generator().manual_seed(3)
    made = (torch.randn(rows, heads, tokens, 8, generator=random, dtype=torch.float64) for heads in (4, 2, 2))
    query, key, value = made
    return query, key, value


def cuts(pieces: Sequence[int]) -> Iterator[slice]:
    """Yield the columns of each piece."""
    for start, stop in pairwise([0, *itertools.accumulate(pieces)]):
        yield slice(start, stop)


def attend(layer: CacheLayer, tensors: Sequence[Tensor], columns: slice, step: Step) -> Tensor:
    """Return what attention makes of some columns of queries, keys and values."""
    query, key, value = (t[:, :, columns] for t in tensors)
    return layer.attend(query, key, value, SCALE, step)


def read_in(layer: CacheLayer, pieces: Sequence[int], tensors: Sequence[Tensor]) -> Tensor:
    """Read a prompt in pieces and return what attention made of it."""
    outs = []
    for columns in cuts(pieces):
        step = PREFILL if columns.stop == sum(pieces) else PREFILL_CHUNK
        outs.append(attend(layer, tensors, columns, step))
    return torch.cat(outs, dim=2)


def sides(layer: CacheLayer) -> list[Payload]:
    """Return what keeps the keys and values of each region."""
    return [side for _, store in layer.stores for side in (store.slots.keys, store.slots.values)]


# -- oracles --------------------------------------------------------------------------------------------------------


def pieces_are_packed_as_a_whole(name: str) -> None:
    """What is held after a prompt in pieces, and in later steps, is bit for bit what is held after one at once."""
    for lengths, pieces in itertools.product(((PROMPT, PROMPT), (PROMPT, 9)), CUTS):
        run, tensors = RunShape(prompt_lengths=lengths, new_tokens=NEW), entries(2, PROMPT + NEW)
        prompt = [t[:, :, :PROMPT] for t in tensors]
        mine, whole = (layer_of(made, run) for made in (packs(name), strategy(name)))
        read_in(mine, pieces, prompt)
        read_in(whole, (PROMPT,), prompt)
        for at in range(PROMPT, PROMPT + NEW + 1):
            assert torch.equal(mine.held_positions(), whole.held_positions())
            for (_, store), got, want in zip(
                [each for each in mine.stores for _ in range(2)], sides(mine), sides(whole), strict=True
            ):
                stop, position = store.slots.filled, store.slots.position
                assert stop > 0
                assert torch.equal(got.read(stop, position), want.read(stop, position))
            if at < PROMPT + NEW:
                outs = [attend(each, tensors, slice(at, at + 1), DECODE) for each in (mine, whole)]
                assert torch.equal(*outs)


def a_piece_attends_to_what_is_packed(name: str) -> None:
    """Outputs are plain softmax sums over what earlier pieces are read as once packed, and over the piece as it is."""
    run, tensors, differs = uniform(rows=2), entries(2), 0.0
    query, key, value = tensors
    for pieces in CUTS:
        got = read_in(layer_of(packs(name), run), pieces, tensors)
        for columns in cuts(pieces):
            first = columns.start
            if first > 0:
                shorter = layer_of(strategy(name), uniform(prompt=first, rows=2))
                read_in(shorter, (first,), [t[:, :, :first] for t in tensors])
                ((_, store),) = shorter.stores
                for side in (store.slots.keys, store.slots.values):
                    side.settle(store.slots.position)
                earlier = [s.read(first, store.slots.position) for s in (store.slots.keys, store.slots.values)]
                differs = max(differs, (earlier[0] - key[:, :, :first]).abs().max().item())
            else:
                earlier = [key[:, :, :0], value[:, :, :0]]
            keys, values = (torch.cat([e, t[:, :, columns]], dim=2) for e, t in zip(earlier, (key, value), strict=True))
            for row, head, at in itertools.product(range(2), range(4), range(columns.start, columns.stop)):
                logits = keys[row, head // 2, : at + 1] @ query[row, head, at] * SCALE
                want = logits.softmax(dim=0) @ values[row, head // 2, : at + 1]
                torch.testing.assert_close(got[row, head, at], want, rtol=0, atol=1e-12)
    assert differs > 1e-4, "nothing is lost by packing: the comparison proves nothing"


def a_whole_prompt_is_as_ever(name: str) -> None:
    """Read at once, a prompt gives the logits and the bytes that it gives where it is packed at its end."""
    for lengths in ((PROMPT, PROMPT), (PROMPT, 9)):
        run, text = RunShape(prompt_lengths=lengths, new_tokens=NEW), padded([ids(5, 1, n + NEW)[0] for n in lengths])
        mine, ever = (drive(model("llama_gqa"), made, text, run) for made in (packs(name), strategy(name)))
        for row, pad in enumerate(run.padding):
            assert torch.equal(mine.logits[row, pad:], ever.logits[row, pad:])
        assert_same_held(mine.held, ever.held)
        assert mine.cache.allocated_bytes() == ever.cache.allocated_bytes()


def rows_equal_rows_alone(name: str) -> None:
    """A row of a left-padded batch gets what it gets alone, cut at the same tokens."""
    lengths, pieces = (17, PROMPT, 9), (6, 11, 7)
    texts = [ids(7 + row, 1, length + NEW)[0] for row, length in enumerate(lengths)]
    batch = drive(
        model("llama_gqa"),
        packs(name),
        padded(texts),
        RunShape(prompt_lengths=lengths, new_tokens=NEW),
        chunks=pieces,
    )
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        pad = PROMPT - length
        mine = [max(0, columns.stop - max(columns.start, pad)) for columns in cuts(pieces)]
        alone = drive(
            model("llama_gqa"), packs(name), text[None], uniform(length), chunks=[count for count in mine if count > 0]
        )
        assert_close(batch.logits[row, pad:], alone.logits[0])
        assert_same_held([[held[row : row + 1] for held in step] for step in batch.held], alone.held)


def nothing_exact_is_kept(name: str) -> None:
    """After every piece the cache holds the bytes that it says it holds in the end, and no others."""
    run, text, made = uniform(prompt=64, rows=2), ids(6, 2, 64), packs(name)
    view, engine = view_of(model("llama_gqa")), Eager(prefill_chunk=16)
    with attention(model("llama_gqa"), "kvbench") as network:
        cache, passes = made.build(view, run), 0
        for step, columns in cache.prompt_passes(64, engine.prefill_chunk):
            cache.begin(step)
            forward(network, cache, text[:, columns])
            passes += 1
            assert cache.allocated_bytes() == made.allocated_bytes(view, run)
            assert _all_storages(cache) <= made.allocated_bytes(view, run)
        assert passes == 4


def _all_storages(cache: KVCache) -> int:
    """Return the bytes of every tensor that the cache's layers refer to, whatever they say of themselves."""
    found: dict[int, int] = {}
    todo: list[Any] = [layer for layer in cache.layers]
    seen: set[int] = set()
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            found[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        elif isinstance(thing, list | tuple | set):
            todo += thing
        elif isinstance(thing, dict):
            todo += thing.values()
        elif isinstance(thing, CacheLayer) or type(thing).__module__.startswith("kvbench.cache"):
            todo += [value for name, value in vars(thing).items() if name not in ("plan", "run", "how")]
    return sum(found.values())


class _Largest(TorchDispatchMode):
    """Notes how many numbers the largest new tensor has."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation."""
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
        for made in out if isinstance(out, list | tuple) else (out,):
            if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in given:
                self.numbers = max(self.numbers, made.untyped_storage().nbytes() // made.element_size())
        return out


def packed_entries_are_read_some_at_a_time(name: str) -> None:
    """A piece behind many tokens makes nothing as large as the layer's keys are as numbers."""
    tokens, piece = 4096, 16
    run, tensors = uniform(prompt=tokens), entries(1, tokens)
    layer = layer_of(packs(name), run)
    attend(layer, tensors, slice(0, tokens - piece), PREFILL_CHUNK)
    with _Largest() as largest:
        attend(layer, tensors, slice(tokens - piece, tokens), PREFILL)
    assert 0 < largest.numbers < tensors[1].numel() // 2, f"{largest.numbers} numbers at once"


def runs_are_attended_to_as_one(window: int) -> None:
    """However entries are cut into runs, attention is that to all of them, padding and windows included."""
    query, key, value = entries(2, 300)
    position = torch.arange(300, dtype=torch.int32).expand(2, 300).clone()
    position[1] = (position[1] - 40).clamp(min=-1)
    for asked, sizes in itertools.product((300, 20), ((300,), (1, 299), (40, 100, 160), (300 - 20, 20))):
        at = position[:, -asked:]
        given = [(key[:, :, columns], value[:, :, columns], position[:, None, columns]) for columns in cuts(sizes)]
        got = attend_runs(query[:, :, -asked:], given, SCALE, query_position=at, window=window)
        want = attend_prompt(
            query[:, :, -asked:], key, value, SCALE, position=position[:, None], query_position=at, window=window
        )
        assert got.isfinite().all()
        is_there = (at >= 0)[:, None, :, None].expand_as(got)
        torch.testing.assert_close(got[is_there], want[is_there], rtol=0, atol=1e-12)
