"""The slow truth of ShadowKV: plain loops over chunks, and the singular values of the keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(kw_only=True)
class ShadowLoops:
    """Reading a few chunks by keys of low rank, in plain words.

    Args:
        size: tokens of a chunk.
        most: chunks read.
        rank: of the keys of what has left.
        budget: tokens that stay exact.
        recent: last ones of these at least.
        prompt: tokens of the prompt.
        frequency: by which keys are rotated [rotary_dim / 2]; None if they are not.
        read: per layer and KV head what each new query read.
    """

    size: int
    most: int
    rank: int
    budget: int
    recent: int
    prompt: int
    frequency: Tensor | None
    read: dict[tuple[int, int], list[list[int]]] = field(default_factory=dict)

    def stays(self, keys: Tensor) -> tuple[list[int], list[list[int]]]:
        """Return the tokens of a prompt's keys [P, D] that stay exact, and the chunks of the others."""
        recent = self.recent
        while (self.budget - recent) % self.size > 0:
            recent += 1
        whole = (self.prompt - recent) // self.size
        chunks = [list(range(at * self.size, (at + 1) * self.size)) for at in range(whole)]
        outliers = sorted(chunks, key=lambda chunk: self._worst(keys[chunk].tolist()))
        outliers = outliers[: (self.budget - recent) // self.size]
        exact = [token for chunk in outliers for token in chunk]
        return exact + list(range(whole * self.size, self.prompt)), [c for c in chunks if c not in outliers]

    def _worst(self, keys: list[list[float]]) -> float:
        mean = _mean(keys)
        return min(_product(key, mean) / math.hypot(*key) / math.hypot(*mean) for key in keys)

    def best(self, queries: list[list[float]], keys: Tensor, chunks: list[list[int]]) -> list[int]:
        """Return the tokens of the chunks to whose mean key some query [g, D] pays most attention."""
        merit = [0.0] * len(chunks)
        for query in queries:
            means = [
                [sum(column) / self.size for column in zip(*keys[chunk].tolist(), strict=True)] for chunk in chunks
            ]
            logits = [_product(query, mean) / math.sqrt(len(query)) for mean in means]
            weights = [math.exp(logit - max(logits)) for logit in logits]
            merit = [max(old, weight / sum(weights)) for old, weight in zip(merit, weights, strict=True)]
        order = sorted(range(len(chunks)), key=lambda at: -merit[at])
        return sorted(token for at in order[: self.most] for token in chunks[at])

    def cut(self, keys: Tensor) -> Tensor:
        """Return keys [G, P, D] of rank `rank`, nearest to these before they are rotated."""
        flat = self._turned(keys, -1).transpose(0, 1).flatten(1)
        left, values, right = torch.linalg.svd(flat, full_matrices=False)
        values[self.rank :] = 0
        return self._turned(((left * values) @ right).unflatten(1, (len(keys), -1)).transpose(0, 1), 1)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return the output of queries [1, H, T, D] over keys and values [1, G, T, D]."""
        share, out = query.shape[1] // key.shape[1], torch.zeros_like(query)
        near = self.cut(key[0, :, : self.prompt])
        for group in range(key.shape[1]):
            heads = slice(group * share, (group + 1) * share)
            stays, chunks = self.stays(key[0, group, : self.prompt])
            for now in range(query.shape[2]):
                exact, far = list(range(now + 1)), []
                if now >= self.prompt:
                    exact = [*stays, *range(self.prompt, now + 1)]
                    far = self.best(query[0, heads, now].tolist(), key[0, group], chunks)
                    self.read.setdefault((layer, group), []).append(sorted(exact + far))
                keys = torch.cat([key[0, group, exact], near[group, far]])
                weights = torch.softmax(query[0, heads, now] @ keys.T * scale, dim=-1)
                out[0, heads, now] = weights @ value[0, group, exact + far]
        return out

    def _turned(self, keys: Tensor, sign: int) -> Tensor:
        if self.frequency is None:
            return keys
        half = len(self.frequency)
        angle = sign * torch.arange(keys.shape[1])[:, None] * self.frequency
        pairs = torch.complex(keys[..., :half], keys[..., half : 2 * half]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([pairs.real, pairs.imag, keys[..., 2 * half :]], dim=-1)


def _mean(keys: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(keys) for column in zip(*keys, strict=True)]


def _product(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def some_are_not_read(read: Sequence[Sequence[int]], prompt: int) -> bool:
    """Return whether some query of those that follow a prompt did not read everything before it."""
    return any(len(seen) <= prompt + at for at, seen in enumerate(read))
