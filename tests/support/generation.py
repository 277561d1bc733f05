"""Checks of the cache inside transformers' generate, and of our own loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from kvbench.engines.eager import Eager
from kvbench.models.view import view_of
from kvbench.types import RunShape
from tests.support.checks import BUDGET, NEW, PROMPT, assert_close, assert_same_held, uniform
from tests.support.drive import drive, padded
from tests.support.models import attention, ids, model
from tests.support.strategies import strategy


def generate(model_name: str, implementation: str, prompt: Tensor, cache: Any, **more: Any) -> Tensor:
    """Return the greedy continuation [B, NEW] from transformers' own loop."""
    mask = more.pop("attention_mask", torch.ones_like(prompt))
    network: Any = model(model_name)
    with attention(network, implementation):
        out: Tensor = network.generate(
            prompt,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=0,
            **more,
        )
    return out[:, prompt.shape[1] :]


def greedy(model_name: str, name: str, prompt: Tensor, run: RunShape) -> Tensor:
    """Return the greedy continuation [B, NEW] from our own loop."""
    engine, out = Eager(prefill_chunk=0), []
    with attention(model(model_name), "kvbench") as network:
        cache = strategy(name, tokens=BUDGET).build(view_of(network), run)
        logits = engine.prefill(network, cache, prompt)
        for _ in range(run.new_tokens or 0):
            out.append(logits.argmax(dim=-1, keepdim=True))
            logits = engine.step(network, cache, out[-1])
    return torch.cat(out, dim=1)


def baseline_generates_what_the_stock_cache_does(model_name: str) -> None:
    """Greedy tokens are the same with the baseline's cache and with transformers' own."""
    prompt, network = ids(60, 2, PROMPT), model(model_name)
    want = generate(model_name, "sdpa", prompt, DynamicCache(config=network.config))
    got = generate(model_name, "kvbench", prompt, strategy("baseline").build(view_of(network), uniform(rows=2)))
    assert got.tolist() == want.tolist()
    assert len(set(want.flatten().tolist())) > 4, "the model repeats itself: the comparison proves little"


def generate_equals_our_loop(name: str, model_name: str) -> None:
    """An evicting cache gives the same greedy tokens in generate as in our loop, and not the full cache's."""
    prompt, network = ids(60, 2, PROMPT), model(model_name)
    cache = strategy(name, tokens=BUDGET).build(view_of(network), uniform(rows=2))
    got = generate(model_name, "kvbench", prompt, cache)
    assert got.tolist() == greedy(model_name, name, prompt, uniform(rows=2)).tolist()
    if name != "baseline":
        assert got.tolist() != greedy(model_name, "baseline", prompt, uniform(rows=2)).tolist()


def padded_generate_equals_rows_alone(name: str, model_name: str) -> None:
    """With the rows' lengths given, generate on a left-padded batch continues each row as it would alone."""
    lengths = (PROMPT, 15)
    texts = [ids(61 + row, 1, length)[0] for row, length in enumerate(lengths)]
    prompt, made = padded(texts), strategy(name, tokens=BUDGET)
    cache = made.build(view_of(model(model_name)), RunShape(prompt_lengths=lengths, new_tokens=NEW))
    got = generate(model_name, "kvbench", prompt, cache, attention_mask=(prompt > 0).long())
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        assert got[row].tolist() == greedy(model_name, name, text[None], uniform(length))[0].tolist()


def engine_feeds_what_it_is_given(name: str, model_name: str, chunk: int) -> None:
    """Our loop's logits are the last of each pass, for every length of chunk."""
    tokens, made = ids(62, 2, PROMPT + NEW), strategy(name, tokens=BUDGET)
    want = drive(model(model_name), made, tokens, uniform(rows=2))
    engine = Eager(prefill_chunk=chunk)
    with attention(model(model_name), "kvbench") as network:
        cache = made.build(view_of(network), uniform(rows=2))
        assert_close(engine.prefill(network, cache, tokens[:, :PROMPT]), want.logits[:, PROMPT - 1])
        assert_same_held([[layer.held_positions() for layer in cache.layers]], want.held[:1])
        for at in range(PROMPT, PROMPT + NEW):
            assert_close(engine.step(network, cache, tokens[:, at : at + 1]), want.logits[:, at])
