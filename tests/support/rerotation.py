"""Keys that close ranks, against transformers' own cache filled by hand with keys rotated to their ranks."""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import DynamicCache

from kvbench.models.view import view_of
from kvbench.strategies.position.policies import Original
from kvbench.types import RunShape
from tests.support.checks import BUDGET, NEW, PROMPT, assert_close, uniform
from tests.support.drive import drive, padded, positions, slots_of
from tests.support.models import attention, ids, model
from tests.support.states import rotated, states
from tests.support.strategies import strategy

LENGTHS = (17, PROMPT, 9)


def keys_are_at_their_ranks(model_name: str) -> None:
    """What is stored is what the model would have made of the kept tokens at positions 0, 1, 2 ..."""
    texts = [ids(70 + row, 1, length)[0] for row, length in enumerate(LENGTHS)]
    run = RunShape(prompt_lengths=LENGTHS, new_tokens=0)
    driven = drive(model(model_name), strategy("finch", tokens=BUDGET), padded(texts), run)
    for row, text in enumerate(texts):
        for layer, made in enumerate(states(model_name, text)):
            held = positions(driven.held[0][layer][row])
            stored = slots_of(driven.cache.layers[layer]).keys.read(BUDGET)[row]
            for head, at in enumerate(held):
                assert len(at) == min(BUDGET, len(text))
                want = rotated(made.raw_key[head, at], torch.arange(len(at)), made.frequency)
                assert_close(stored[head, : len(at)], want)


def decoding_goes_on_at_the_rank(model_name: str) -> None:
    """Each row's logits are those of transformers' cache with the kept entries alone, new tokens right behind."""
    texts = [ids(73 + row, 1, length + NEW)[0] for row, length in enumerate(LENGTHS)]
    made, network = strategy("finch", tokens=BUDGET), model(model_name)
    run = RunShape(prompt_lengths=LENGTHS, new_tokens=NEW)
    driven = drive(network, made, padded(texts), run)
    for row, (text, length) in enumerate(zip(texts, LENGTHS, strict=True)):
        cache = DynamicCache(config=network.config)
        for layer, seen in enumerate(states(model_name, text[:length])):
            held = positions(driven.held[0][layer][row])
            at = torch.arange(len(held[0]))
            keys = [rotated(seen.raw_key[head, kept], at, seen.frequency) for head, kept in enumerate(held)]
            values = [seen.value[head, kept] for head, kept in enumerate(held)]
            cache.update(torch.stack(keys)[None], torch.stack(values)[None], layer)
        with attention(network, "sdpa") as stock:
            for step in range(NEW):
                where = torch.tensor([[min(BUDGET, length) + step]])
                out = stock(text[None, length + step : length + step + 1], past_key_values=cache, position_ids=where)
                assert_close(driven.logits[row, PROMPT + step], out.logits[0, 0])
    gaps = drive(network, replace(made, position=Original()), padded(texts), run)
    assert (gaps.logits - driven.logits).abs().max() > 1e-3, "positions change nothing: the comparison proves nothing"


def positions_count_what_is_held() -> None:
    """The cache says that new tokens follow the entries kept, row by row, and the true position before that."""
    run = RunShape(prompt_lengths=LENGTHS, new_tokens=NEW)
    texts = padded([ids(76 + row, 1, length + 2)[0] for row, length in enumerate(LENGTHS)])
    noted: list[list[list[int]]] = []
    made = strategy("finch", tokens=BUDGET)
    empty = made.build(view_of(model("llama_gqa")), run)
    assert empty.position_ids(PROMPT)[0].tolist() == [0] * 7 + list(range(17))
    drive(model("llama_gqa"), made, texts, run, watch=lambda cache, _: noted.append(cache.position_ids(2).tolist()))
    kept = [min(BUDGET, length) for length in LENGTHS]
    assert noted == [[[n + step, n + step + 1] for n in kept] for step in range(3)]
    assert empty.padding is not None
    built = drive(model("llama_gqa"), made, texts, run).cache
    assert built.allocated_bytes() == made.allocated_bytes(view_of(model("llama_gqa")), run)


def rerotating_everything_changes_nothing(model_name: str) -> None:
    """With room for the whole prompt every key is where it was, bit for bit."""
    tokens = ids(79, 2, PROMPT + NEW)
    base = drive(model(model_name), strategy("baseline"), tokens, uniform(rows=2))
    got = drive(model(model_name), strategy("finch", tokens=PROMPT), tokens, uniform(rows=2))
    assert torch.equal(got.logits, base.logits)
    for mine, theirs in zip(got.cache.layers, base.cache.layers, strict=True):
        assert torch.equal(slots_of(mine).keys.read(PROMPT), slots_of(theirs).keys.read(PROMPT))
