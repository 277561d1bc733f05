"""What a strategy holds and says at every step, teacher-forced and untimed: feeds tests and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from kvbench.cache.doors import ATTENTION
from kvbench.cache.kv_cache import KVCache
from kvbench.cache.watched import WatchedCache
from kvbench.engines.arm import Arm
from kvbench.engines.eager import Eager
from kvbench.models.view import view_of
from kvbench.strategies.base import CacheStrategy
from kvbench.types import DECODE, RunShape

Held = Sequence[Sequence[Tensor]]  # per step and layer [B, 1 or G, m]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """A teacher-forced pass over one batch.

    Args:
        logits: [B, T, V].
        held: per step and layer the positions held [B, 1 or G, m], ascending, -1 for none; the first step is the
            end of the prompt, every other one a decoded token.
    """

    logits: Tensor
    held: Held


def trace(model: nn.Module, strategy: CacheStrategy, ids: Tensor, prompt_tokens: int) -> Trace:
    """Feed ids through a strategy's cache and look at it after every step.

    Args:
        model: a transformers causal language model; its attention function is switched for the time of the call.
        strategy: what is stored.
        ids: [B, T].
        prompt_tokens: how many of them are the prompt; the rest is decoded one at a time.
    """
    if not 0 < prompt_tokens <= ids.shape[1]:
        raise ValueError(f"prompt_tokens must be between 1 and the {ids.shape[1]} ids given; got {prompt_tokens}.")
    before = model.config._attn_implementation  # type: ignore[union-attr]
    arm = arm_of(model, strategy)
    arm.model.set_attn_implementation(ATTENTION)  # type: ignore[operator]
    try:
        with torch.no_grad():
            return _trace(arm.model, arm.cache(_run_of(ids, prompt_tokens)), strategy, ids)
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


def arm_of(model: nn.Module, strategy: CacheStrategy) -> Arm:
    """Return a strategy on the model that it makes of one."""
    prepared = strategy.prepare(model)
    view = strategy.transform.view(prepared, view_of(model))
    return Arm(name="strategy", model=prepared, view=view, strategy=strategy, engine=Eager(prefill_chunk=0))


@torch.no_grad()
def held_by(arm: Arm, ids: Tensor, prompt_tokens: int) -> Held:
    """Return what `trace` says is held, without the logits of a whole prompt; the model attends through its cache."""
    cache = arm.cache(_run_of(ids, prompt_tokens))
    arm.prefill(cache, ids[:, :prompt_tokens])
    held = [tuple(layer.held_positions() for layer in cache.layers)]
    for at in range(prompt_tokens, ids.shape[1]):
        arm.step(cache, ids[:, at : at + 1])
        held.append(tuple(layer.held_positions() for layer in cache.layers))
    return tuple(held)


@torch.no_grad()
def attention_lost(full: Arm, ids: Tensor, held: Held) -> Tensor:
    """Return which share of the full cache's attention falls on what a strategy no longer holds [steps, layers].

    Each decoded token attends in the full cache, whose keys are those of the full cache's own pass. A position is lost
    to a KV head if the strategy did not hold it when the token came; the token itself is always there. Layers with a
    window pay attention within it and nowhere else. Means are over rows and query heads.

    Args:
        full: the full cache on the model that the strategy runs on.
        ids: [B, T], fed through both.
        held: what the strategy held, as `Trace` says it.
    """
    prompt_tokens = ids.shape[1] - len(held) + 1
    run = _run_of(ids, prompt_tokens)
    if full.view.replays:  # nobody is told of attention in a step that is replayed
        full = replace(full, view=replace(full.view, replays=False), engine=Eager(prefill_chunk=0))
    cache = WatchedCache(full.strategy.plans(full.view, run), full.view, run)
    full.prefill(cache, ids[:, :prompt_tokens])
    lost = []
    for at, layers in zip(range(prompt_tokens, ids.shape[1]), held[:-1], strict=True):
        full.step(cache, ids[:, at : at + 1])
        gone = [
            received.masked_fill(_is_held(positions, at), 0).sum(dim=-1).mean().to(ids.device)
            for received, positions in zip(cache.received, layers, strict=True)
        ]
        lost.append(torch.stack(gone))
    return torch.stack(lost) if lost else torch.empty(0, len(cache.layers))


def _is_held(positions: Tensor, newest: int) -> Tensor:
    """Return which positions up to the newest, which is, are among those held [B, 1 or G, newest + 1]."""
    found = torch.zeros((*positions.shape[:2], newest + 2), dtype=torch.bool, device=positions.device)
    found.scatter_(2, positions.long() + 1, True)  # -1, for none, comes first
    found[..., -1] = True
    return found[..., 1:]


def _run_of(ids: Tensor, prompt_tokens: int) -> RunShape:
    batch, tokens = ids.shape
    return RunShape(prompt_lengths=(prompt_tokens,) * batch, new_tokens=tokens - prompt_tokens)
