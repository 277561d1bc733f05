"""What a strategy holds and says at every step, teacher-forced and untimed: feeds tests and pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kvbench.cache.doors import ATTENTION
from kvbench.cache.kv_cache import KVCache
from kvbench.models.view import view_of
from kvbench.strategies.base import CacheStrategy
from kvbench.types import DECODE, RunShape


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A teacher-forced pass over one batch.

    Args:
        logits: [B, T, V].
        held: per step and layer the positions held [B, 1 or G, m], ascending, -1 for none; the first step is the
            end of the prompt, every other one a decoded token.
    """

    logits: Tensor
    held: tuple[tuple[Tensor, ...], ...]


def trace(model: nn.Module, strategy: CacheStrategy, ids: Tensor, prompt_tokens: int) -> Trace:
    """Feed ids through a strategy's cache and look at it after every step.

    Args:
        model: a transformers causal language model; its attention function is switched for the time of the call.
        strategy: what is stored.
        ids: [B, T].
        prompt_tokens: how many of them are the prompt; the rest is decoded one at a time.
    """
    batch, tokens = ids.shape
    if not 0 < prompt_tokens <= tokens:
        raise ValueError(f"prompt_tokens must be between 1 and the {tokens} ids given; got {prompt_tokens}.")
    before = model.config._attn_implementation  # type: ignore[union-attr]
    prepared = strategy.prepare(model)
    view = strategy.transform.view(prepared, view_of(model))
    prepared.set_attn_implementation(ATTENTION)  # type: ignore[operator]
    try:
        with torch.no_grad():
            run = RunShape(prompt_lengths=(prompt_tokens,) * batch, new_tokens=tokens - prompt_tokens)
            return _trace(prepared, strategy.build(view, run), strategy, ids)
    finally:
        model.set_attn_implementation(before)  # type: ignore[operator]


def _trace(model: nn.Module, cache: KVCache, strategy: CacheStrategy, ids: Tensor) -> Trace:
    run = cache.run
    logits, held = [], []
    prompt = list(cache.prompt_passes(run.prompt_tokens, 0))
    decoded = [(DECODE, slice(at, at + 1)) for at in range(run.prompt_tokens, ids.shape[1])]
    with strategy.attach(model, cache):
        for number, (step, columns) in enumerate([*prompt, *decoded], 1):
            cache.begin(step)
            positions = cache.position_ids(columns.stop - columns.start)
            part = model(ids[:, columns], past_key_values=cache, use_cache=True, position_ids=positions)
            if step.phase != "repeat":
                logits.append(part.logits)
            if number >= len(prompt):
                held.append(tuple(layer.held_positions() for layer in cache.layers))
    return Trace(logits=torch.cat(logits, dim=1), held=tuple(held))
