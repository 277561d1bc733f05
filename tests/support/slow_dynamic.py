"""Counting, noise and lots in plain Python loops: dense attention under what each paper says is held."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from tests.support.models import attention
from tests.support.models import model as model_of
from tests.support.reference import Pass, Rules, _frequency, _Layer

NAME = "slow_dynamic"


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A method in the words of its paper.

    Args:
        score: what ranks the entries.
        budget: entries kept.
        period: entries that leave at a time while decoding; 0 for none.
        sinks: first tokens that never leave.
        recent: newest tokens that never leave.
        history: steps that count (score "lost").
        seed: of noise and lots.
        noise: factor of the noise (score "noisy").
        taus: temperature of the prompt, temperature at the end, steps in between (score "noisy").
        voters: share of the prompt that votes (score "proxy").
        sampled: entries drawn by lot (score "proxy").
    """

    score: str
    budget: int
    period: int = 0
    sinks: int = 0
    recent: int = 0
    history: int = 0
    seed: int = 0
    noise: float = 1.0
    taus: tuple[float, float, int] = (1.0, 2.0, 1)
    voters: str = "0.01"
    sampled: int = 0


def run(model_name: str, ids: Tensor, prompt: int, paper: Paper) -> tuple[Tensor, Pass]:
    """Return the logits [1, T, V] of ids [1, T] under the paper, and what was held."""
    assert ids.shape[0] == 1
    return _run(model_name, tuple(ids[0].tolist()), prompt, paper)


_PASSES: list[tuple[Pass, Paper]] = []


@functools.cache
def _run(model_name: str, ids: tuple[int, ...], prompt: int, paper: Paper) -> tuple[Tensor, Pass]:
    model = model_of(model_name)
    rules = Rules(score="mass", budget=paper.budget, sinks=paper.sinks, recent=paper.recent)
    made = Pass(rules=rules, prompt=prompt, frequency=lambda module: _frequency(model, module))
    learned = not hasattr(model.base_model, "rotary_emb")
    at = torch.arange(len(ids)) if learned else torch.zeros(len(ids), dtype=torch.long)
    _PASSES.append((made, paper))
    try:
        with attention(model, NAME):
            logits: Tensor = model(torch.tensor([ids]), use_cache=False, position_ids=at[None]).logits
    finally:
        _PASSES.pop()
    return logits, made


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    made, paper = _PASSES[-1]
    assert isinstance(module.layer_idx, int)
    layer = _Slow(
        index=module.layer_idx,
        query=query[0],
        key=key[0],
        value=value[0],
        scale=scaling,
        rules=made.rules,
        frequency=made.frequency(module),
        paper=paper,
    )
    out = layer.run(made.prompt, 0)
    made.held[module.layer_idx], made.scores[module.layer_idx] = layer.held, layer.scores
    return out.transpose(0, 1)[None], None


@dataclass(kw_only=True)
class _Slow(_Layer):
    """One layer that lets go by the paper."""

    paper: Paper
    noisy: dict[tuple[int, int], list[float]] = field(default_factory=dict)

    def _after(self, kept_set: int, now: int, prompt: int) -> list[int]:
        held = [*self.kept[kept_set], now]
        if not self.paper.period or len(held) < self.paper.budget + self.paper.period:
            return held
        return self._choose(kept_set, now, held, prompt)

    def _choose(self, kept_set: int, now: int, held: list[int], prompt: int) -> list[int]:
        if self.paper.score != "proxy":
            return super()._choose(kept_set, now, held, prompt)
        score = {at: self._score(kept_set, at, now, prompt) for at in held}
        stays = [at for at in held if at < self.paper.sinks or at > now - self.paper.recent]
        rest = sorted(set(held) - set(stays), key=lambda at: (score[at], at), reverse=True)
        firm = self.paper.budget - self.paper.sampled - len(stays)
        stays, rest = stays + rest[:firm], rest[firm:]
        lots = {at: score[at] + gumbel(lot(self.paper.seed * 4096 + self.index, 0, kept_set, at)) for at in rest}
        return sorted(stays + sorted(rest, key=lambda at: lots[at], reverse=True)[: self.paper.sampled])

    def _score(self, kept_set: int, at: int, now: int, prompt: int) -> float:
        group = [kept_set * self.share + head for head in range(self.share)]
        if self.paper.score == "lost":
            first = max(at, now + 1 - self.paper.history)
            return -sum(self._lost(kept_set, row, at) for row in range(first, now + 1))
        if self.paper.score == "proxy":
            first = prompt - max(1, math.floor(Fraction(self.paper.voters) * prompt))
            return sum(self._received(kept_set, row, at) for row in range(first, prompt))
        rows = [self._noisy(row, head, prompt)[at] for row in range(at, now + 1) for head in group]
        return sum(rows) / self.share

    def _lost(self, group: int, row: int, at: int) -> bool:
        """Return whether a query that sees the entry pays it less than an equal share."""
        entries = sum(weight > 0 for weight in self.rows[row][group * self.share])
        return self._received(group, row, at) < 1 / entries

    def _noisy(self, row: int, head: int, prompt: int) -> list[float]:
        """Return a softmax over logits with noise."""
        if (row, head) not in self.noisy:
            start, end, steps = self.paper.taus
            tau = start + (end - start) * min(max(0, row - prompt + 1), steps) / steps
            logits = {at: math.log(weight) for at, weight in enumerate(self.rows[row][head]) if weight > 0}
            noise = {at: gumbel(pair_lot(self.paper.seed, self.index, head, row, at)) for at in logits}
            raised = {at: math.exp((logits[at] + self.paper.noise * noise[at]) / tau) for at in logits}
            total = sum(raised.values())
            self.noisy[row, head] = [raised.get(at, 0.0) / total for at in range(self.tokens)]
        return self.noisy[row, head]


# -- chance, in Python's own integers -------------------------------------------------------------------------------

_PRIME = 2**31 - 1


def mixed(number: int) -> int:
    """Return a number that looks like chance."""
    for multiplier in (48_271, 69_621, 630_360_016):
        number = number % _PRIME * multiplier % _PRIME
        number ^= number >> 13
    return number % _PRIME


def lot(seed: int, layer: int, head: int, position: int) -> int:
    """Return the lot of an entry."""
    return mixed((position + 1) * 1_000_003 + head * 7_919 + layer * 104_729 + seed * 15_485_863)


def pair_lot(seed: int, layer: int, head: int, query: int, key: int) -> int:
    """Return the lot of a query and an entry."""
    pair = signed((lot(seed, layer, head, query) ^ mixed((key + 1) * 1_000_003)) * 1_540_483_477)
    return signed((pair ^ (pair >> 15)) * 668_265_263) % 2**31


def signed(number: int) -> int:
    """Return what is left of a number in 32 bits with a sign."""
    return (number + 2**31) % 2**32 - 2**31


def gumbel(number: int) -> float:
    """Return the Gumbel variate of a lot."""
    return -math.log(-math.log((number // 256 + 0.5) / 2**23))


_attention: Callable[..., Any] = _attend
AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
