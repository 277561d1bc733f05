"""The slow truth of reading by pages: plain loops over pages, one query of one head at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from tests.support.models import attention, model

NAME = "reads_pages"


@dataclass(kw_only=True)
class Loops:
    """Reading by pages, in plain words.

    Args:
        size: entries of a page.
        most: pages read.
        prompt: tokens whose attention is dense.
        survivors: what is held of the prompt, per layer and KV head; all of it where nothing is said.
        skipped: layers that read everything.
        exact: whether pages are ranked by the largest sum of logits in them instead of by bounds.
        read: per layer and KV head what each new query read.
    """

    size: int
    most: int
    prompt: int
    survivors: Callable[[int, int], list[int]] | None = None
    skipped: Sequence[int] = ()
    exact: bool = False
    read: dict[tuple[int, int], list[list[int]]] = field(default_factory=dict)

    def visible(self, layer: int, group: int, queries: Tensor, keys: Tensor, now: int) -> list[int]:
        """Return the tokens that the queries [H / G, D] of one token read of the keys [T, D]."""
        if now < self.prompt or layer in self.skipped:
            return list(range(now + 1))
        held = list(range(self.prompt)) if self.survivors is None else self.survivors(layer, group)
        held = [*held, *range(self.prompt, now + 1)]
        pages = [held[start : start + self.size] for start in range(0, len(held), self.size)]
        merit = [self._merit(queries.tolist(), keys[page].tolist()) for page in pages]
        merit[-1] = math.inf
        best = sorted(range(len(pages)), key=lambda page: -merit[page])[: self.most]
        read = sorted(at for page in best for at in pages[page])
        self.read.setdefault((layer, group), []).append(read)
        return read

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return the output of queries [1, H, T, D] over keys and values [1, G, T, D]."""
        share, out = query.shape[1] // key.shape[1], torch.zeros_like(query)
        for now in range(query.shape[2]):
            self.begin(layer, query[0, :, now], key[0])
            for group in range(key.shape[1]):
                heads = slice(group * share, (group + 1) * share)
                seen = self.visible(layer, group, query[0, heads, now], key[0, group], now)
                logits = self.logits(layer, group, query[0, heads, now], key[0, group], seen, now)
                weights = torch.softmax(logits * scale, dim=-1)
                self.observe(layer, group, weights, seen, now)
                out[0, heads, now] = weights @ value[0, group, seen]
        return out

    def begin(self, layer: int, queries: Tensor, keys: Tensor) -> None:
        """Be shown the queries [H, D] of one token and all keys [G, T, D], before any head attends."""

    def logits(self, layer: int, group: int, queries: Tensor, keys: Tensor, seen: list[int], now: int) -> Tensor:
        """Return the products of the queries [H / G, D] with the keys [T, D] that are read."""
        return queries @ keys[seen].T

    def observe(self, layer: int, group: int, weights: Tensor, seen: list[int], now: int) -> None:
        """Be shown the attention weights [H / G, m] of what is read."""

    def _merit(self, queries: list[list[float]], keys: list[list[float]]) -> float:
        if self.exact:
            (key,) = keys
            return sum(a * b for query in queries for a, b in zip(query, key, strict=True))
        total = 0.0
        for query in queries:
            for i, number in enumerate(query):
                column = [key[i] for key in keys]
                total += max(number * min(column), number * max(column))
        return total


class Attending(Protocol):
    """Loops that attend."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return the output of queries [1, H, T, D] over keys and values [1, G, T, D]."""


_LOOPS: list[Attending] = []


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **more: Any
) -> tuple[Tensor, None]:
    assert isinstance(module.layer_idx, int)
    scale = more.get("scaling") or query.shape[-1] ** -0.5
    return _LOOPS[-1].attend(module.layer_idx, query, key, value, scale).transpose(1, 2), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


def by_loops(model_name: str, tokens: Tensor, loops: Attending) -> Tensor:
    """Return the logits of one row of ids [1, T]."""
    _LOOPS.append(loops)
    try:
        with attention(model(model_name), NAME) as network:
            logits: Tensor = network(tokens, use_cache=False).logits
    finally:
        _LOOPS.pop()
    return logits
