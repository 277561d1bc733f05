"""The slow truth: dense attention over the uncompressed keys and values, one query of one head at a time.

Written from the papers alone; it shares no code with the cache. Each row of a batch is run alone, in one forward
pass over prompt and continuation: which entries a query sees is worked out token by token from explicit lists.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from tests.support.models import attention, inverse_frequency
from tests.support.models import model as model_of

NAME = "reference"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """A method in the words of its paper.

    Args:
        score: what ranks the entries; "none" keeps them all.
        budget: entries kept.
        every_step: whether entries leave while decoding.
        period: how many gather before as many leave.
        heads: entries kept per layer and KV head, None for all of them, where these differ.
        sinks: first tokens that never leave.
        recent: newest tokens that never leave.
        by_rank: whether keys and queries are rotated by their rank among what is visible.
        skipped: layers that keep everything.
        window: queries that vote (score "window").
        kernel: positions a vote is smoothed over.
        pooling: how.
        seed: of score "lot".

    Score "votes" is that of the `window` latest queries, the later ones counting more, over what is held when entries
    have to leave.
    """

    score: Literal["none", "recency", "lot", "mass", "last", "window", "norm", "votes"]
    budget: int = 0
    every_step: bool = True
    period: int = 1
    heads: tuple[tuple[int | None, ...], ...] = ()
    sinks: int = 0
    recent: int = 0
    by_rank: bool = False
    skipped: tuple[int, ...] = ()
    window: int = 0
    kernel: int = 1
    pooling: Literal["mean", "max"] = "mean"
    seed: int = 0

    @property
    def per_head(self) -> bool:
        """Whether KV heads keep sets of their own."""
        return self.score in ("lot", "mass", "window", "norm", "votes")


@dataclass
class Pass:
    """One forward pass of the reference: the rules, and what it notes per layer, step and kept set."""

    rules: Rules
    prompt: int
    frequency: Callable[[nn.Module], Tensor | None]
    held: dict[int, list[list[list[int]]]] = field(default_factory=dict)
    scores: dict[int, list[list[dict[int, float]]]] = field(default_factory=dict)


_PASSES: list[Pass] = []


def run(model_name: str, ids: Tensor, prompt: int, rules: Rules) -> tuple[Tensor, Pass]:
    """Return the logits [1, T, V] of ids [1, T] under the rules, and what was held."""
    assert ids.shape[0] == 1
    return _run(model_name, tuple(ids[0].tolist()), prompt, rules)


@functools.cache
def _run(model_name: str, ids: tuple[int, ...], prompt: int, rules: Rules) -> tuple[Tensor, Pass]:
    tokens, model = len(ids), model_of(model_name)
    made = Pass(rules=rules, prompt=prompt, frequency=lambda module: _frequency(model, module))
    learned = not hasattr(model.base_model, "rotary_emb")
    at = torch.zeros(tokens, dtype=torch.long)  # no rotation by the model: the reference rotates on its own
    if learned:
        at = torch.arange(tokens)
        if rules.by_rank:
            dropped = at[prompt:] - rules.budget if rules.every_step else torch.tensor(prompt - rules.budget)
            at[prompt:] -= dropped.clamp(min=0)
    _PASSES.append(made)
    try:
        with attention(model, NAME):
            logits: Tensor = model(torch.tensor([ids]), use_cache=False, position_ids=at[None]).logits
    finally:
        _PASSES.pop()
    return logits, made


def _frequency(model: PreTrainedModel, module: nn.Module) -> Tensor | None:
    if not hasattr(model.base_model, "rotary_emb"):
        return None
    kinds = getattr(model.config, "layer_types", None) if model.config.model_type.startswith("gemma3") else None
    return inverse_frequency(model.config, None if kinds is None else kinds[module.layer_idx])


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    made = _PASSES[-1]
    assert query.shape[0] == 1
    assert isinstance(module.layer_idx, int)
    rules = made.rules
    if rules.score == "none" or module.layer_idx in rules.skipped:
        rules = Rules(score="none")
    if sliding_window:  # a sliding layer sees its window, itself included, whatever the method
        rules = Rules(score="recency", budget=sliding_window - 1)
    layer = _Layer(
        index=module.layer_idx,
        query=query[0],
        key=key[0],
        value=value[0],
        scale=scaling if scaling is not None else query.shape[-1] ** -0.5,
        rules=rules,
        frequency=made.frequency(module),
    )
    out = layer.run(made.prompt, sliding_window or 0)
    made.held[module.layer_idx], made.scores[module.layer_idx] = layer.held, layer.scores
    return out.transpose(0, 1)[None], None


@dataclass(kw_only=True)
class _Layer:
    """One layer: queries [H, T, D] against keys and values [G, T, D], which nobody has rotated yet."""

    index: int
    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    rules: Rules
    frequency: Tensor | None
    rows: list[list[list[float]]] = field(default_factory=list)  # attention weights of each query [T][H][T]
    held: list[list[list[int]]] = field(default_factory=list)  # per step and kept set, from the prompt's end on
    scores: list[list[dict[int, float]]] = field(default_factory=list)  # of the entries held, likewise

    def __post_init__(self) -> None:
        self.heads, self.tokens, _ = self.query.shape
        self.share = self.heads // self.key.shape[0]
        self.sets = self.key.shape[0] if self.rules.per_head else 1
        self.kept: list[list[int]] = [[] for _ in range(self.sets)]

    def run(self, prompt: int, window: int) -> Tensor:
        """Attend, score and let go, token by token; return the output [H, T, D]."""
        out = torch.zeros_like(self.query)
        for now in range(self.tokens):
            row = torch.zeros(self.heads, self.tokens, dtype=torch.float64)
            for head in range(self.heads):
                group = head // self.share
                visible = [*self.kept[group % self.sets], now] if now >= prompt else list(range(now + 1))
                if now < prompt and window:
                    visible = visible[-window:]
                row[head, visible] = self._weights(head, group, now, visible)
                out[head, now] = row[head] @ self.value[group]
            self.rows.append(row.tolist())
            if now == prompt - 1:
                self.kept = [self._choose(s, now, list(range(prompt)), prompt) for s in range(self.sets)]
            elif now >= prompt:
                self.kept = [self._after(s, now, prompt) for s in range(self.sets)]
            if now >= prompt - 1:
                self.held.append([sorted(kept) for kept in self.kept])
                self.scores.append(
                    [{at: self._score(s, at, now, prompt) for at in kept} for s, kept in enumerate(self.kept)]
                )
        return out

    def _weights(self, head: int, group: int, now: int, visible: list[int]) -> Tensor:
        at = list(range(len(visible))) if self.rules.by_rank else visible
        keys = self._rotated(self.key[group, visible], at)
        query = self._rotated(self.query[head, now][None], at[-1:])[0]
        return torch.softmax(keys @ query * self.scale, dim=0)

    def _rotated(self, rows: Tensor, at: list[int]) -> Tensor:
        """Rotate each pair (i, i + half) of a row as a complex number."""
        if self.frequency is None:
            return rows
        half = len(self.frequency)
        turn = torch.polar(torch.ones(len(at), half).double(), torch.tensor(at).double()[:, None] * self.frequency)
        pairs = torch.complex(rows[:, :half], rows[:, half : 2 * half]) * turn
        return torch.cat([pairs.real, pairs.imag, rows[:, 2 * half :]], dim=1)

    # -- what leaves ------------------------------------------------------------------------------------------------

    def _after(self, kept_set: int, now: int, prompt: int) -> list[int]:
        held, most = [*self.kept[kept_set], now], self._most(kept_set)
        is_full = most is not None and len(held) == most + self.rules.period
        return self._choose(kept_set, now, held, prompt) if self.rules.every_step and is_full else held

    def _most(self, kept_set: int) -> int | None:
        return self.rules.heads[self.index][kept_set] if self.rules.heads else self.rules.budget

    def _choose(self, kept_set: int, now: int, held: list[int], prompt: int) -> list[int]:
        """Return the entries that stay: protected ones, then the best scores, the later position where they tie."""
        rules, most = self.rules, self._most(kept_set)
        if rules.score == "none" or most is None:
            return held
        score = {at: self._score(kept_set, at, now, prompt) for at in held}
        if rules.score == "votes":
            score = self._votes(kept_set, now, held)

        def merit(at: int) -> tuple[bool, float, int]:
            return (at < rules.sinks or at > now - rules.recent, score[at], at)

        return sorted(sorted(held, key=merit, reverse=True)[:most])

    def _score(self, kept_set: int, at: int, now: int, prompt: int) -> float:
        rules = self.rules
        if rules.score in ("recency", "none", "votes"):
            return float(at)
        if rules.score == "lot":
            return lot(rules.seed, at, kept_set, self.index)
        if rules.score == "norm":
            return -math.hypot(*self.key[kept_set, at].tolist())
        if rules.score == "last":  # all heads of the layer, the latest query
            return sum(self.rows[now][head][at] for head in range(self.heads)) / self.heads
        if rules.score == "mass":
            return sum(self._received(kept_set, row, at) for row in range(now + 1))
        return self._vote(kept_set, at, prompt)

    def _votes(self, group: int, now: int, held: list[int]) -> dict[int, float]:
        """What the latest queries pay to the entries held, each query to those that are not after it."""
        votes = dict.fromkeys(held, 0.0)
        for voter in range(max(0, now + 1 - self.rules.window), now + 1):
            visible = [at for at in held if at <= voter]
            for head in range(group * self.share, (group + 1) * self.share):
                paid = self._weights(head, group, voter, visible).tolist() if visible else []
                for at, weight in zip(visible, paid, strict=True):
                    votes[at] += weight / (now + 1 - voter) / self.share
        return votes

    def _received(self, group: int, row: int, at: int) -> float:
        """Attention from one query, the mean over the group's query heads."""
        return sum(self.rows[row][group * self.share + i][at] for i in range(self.share)) / self.share

    def _vote(self, group: int, at: int, prompt: int) -> float:
        """SnapKV: votes of the prompt's last queries, smoothed over the positions before them."""
        first_voter = max(0, prompt - self.rules.window)

        def votes(position: int) -> float:
            return sum(self._received(group, row, position) for row in range(first_voter, prompt))

        if at >= first_voter:
            return votes(at)
        half = self.rules.kernel // 2
        near = [votes(i) for i in range(at - half, at + half + 1) if 0 <= i < first_voter]
        return max(near) if self.rules.pooling == "max" else sum(near) / self.rules.kernel


def lot(seed: int, position: int, head: int, layer: int) -> float:
    """Return the lot of an entry, in Python's own integers."""
    prime = 2**31 - 1
    number = (position + 1) * 1_000_003 + head * 7_919 + layer * 104_729 + seed * 15_485_863
    for multiplier in (48_271, 69_621, 630_360_016):
        number = number % prime * multiplier % prime
        number ^= number >> 13
    return number % prime / prime


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
