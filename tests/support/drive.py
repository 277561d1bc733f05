"""Feeds ids through a kvbench cache, and looks at it after every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.cache.kv_cache import KVCache
from kvbench.cache.layer import CacheLayer
from kvbench.cache.slots import Slots
from kvbench.models.view import view_of
from kvbench.strategies.base import CacheStrategy
from kvbench.types import DECODE, PREFILL, PREFILL_CHUNK, RunShape
from tests.support.models import attention

Watch = Callable[[KVCache, int], None]


@dataclass(frozen=True, kw_only=True)
class Driven:
    """What came of it.

    Args:
        logits: [B, T, V].
        held: per step and layer the positions held [B, 1 or G, m], -1 for none; the first is the end of the prompt.
        scores: per step, layer and row, per kept set, the score of every position in storage.
        cache: as it was left.
    """

    logits: Tensor
    held: list[list[Tensor]]
    scores: list[list[list[list[dict[int, float]]]]]
    cache: KVCache


def drive(
    model: PreTrainedModel,
    strategy: CacheStrategy,
    ids: Tensor,
    run: RunShape,
    *,
    chunks: Sequence[int] = (),
    steps: Sequence[int] = (),
    watch: Watch | None = None,
) -> Driven:
    """Run ids [B, T], the prompt first.

    Args:
        model: in evaluation mode.
        strategy: builds the cache.
        ids: prompt and what follows it, padded on the left.
        run: how long the rows are.
        chunks: tokens of the prompt per pass; all at once if empty.
        steps: tokens per decode pass; one each if empty.
        watch: called with the cache and the columns seen after every pass.
    """
    prompt = run.prompt_tokens
    passes = [*(chunks or (prompt,)), *(steps or (1,) * (ids.shape[1] - prompt))]
    logits, held, noted, at = [], [], [], 0
    with attention(model, "kvbench"), ExitStack() as hooks:
        cache = strategy.build(view_of(model), run)
        hooks.enter_context(strategy.attach(model, cache))

        def forward(columns: slice) -> Tensor:
            where = cache.position_ids(columns.stop - columns.start)
            out: Tensor = model(ids[:, columns], past_key_values=cache, use_cache=True, position_ids=where).logits
            return out

        for tokens in passes:
            stop = at + tokens
            cache.begin(PREFILL_CHUNK if stop < prompt else PREFILL if stop == prompt else DECODE)
            logits.append(forward(slice(at, stop)))
            at = stop
            for step, columns in cache.prompt_passes(prompt, 0) if at == prompt else ():
                if step.phase == "repeat":
                    cache.begin(step)
                    forward(columns)
            if at >= prompt:
                held.append([layer.held_positions() for layer in cache.layers])
                noted.append([[scores(layer, row) for row in range(len(ids))] for layer in cache.layers])
            if watch is not None and at >= prompt:
                watch(cache, at)
    return Driven(logits=torch.cat(logits, dim=1), held=held, scores=noted, cache=cache)


def slots_of(layer: CacheLayer) -> Slots:
    """Return the slots of a layer that is stored as a whole."""
    ((_, store),) = layer.stores
    return store.slots


def scores(layer: CacheLayer, row: int) -> list[dict[int, float]]:
    """Return the score at every position of one row, per kept set; nothing where no score is kept."""
    noted: list[dict[int, float]] = []
    for region, store in layer.stores:
        if store.slots.score is None or not region.rows.start <= row < region.rows.stop:
            continue
        at = row - region.rows.start
        pairs = zip(store.slots.position[at].tolist(), store.slots.score[at].tolist(), strict=True)
        noted += [dict(zip(positions, scores, strict=True)) for positions, scores in pairs]
    return noted


def padded(rows: Sequence[Tensor]) -> Tensor:
    """Return rows of ids [T] in one batch [B, T]; shorter ones have zeros on the left."""
    longest = max(len(row) for row in rows)
    return torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0)) for row in rows])


def positions(held: Tensor) -> list[list[int]]:
    """Return the positions held of one row [1 or G, m] as lists."""
    return [[at for at in row if at >= 0] for row in held.tolist()]
