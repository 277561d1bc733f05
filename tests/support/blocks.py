"""The slow truth of blocks that are read at clamped distances, and what else must hold of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvbench.cache.blocks import Representatives
from kvbench.models.view import view_of
from kvbench.types import RunShape
from tests.support.checks import BUDGET, NEW, PROMPT, assert_close, uniform
from tests.support.drive import drive, padded
from tests.support.models import ids, model
from tests.support.page_loops import Loops, by_loops
from tests.support.parts import rand
from tests.support.strategies import strategy

SIZE, MOST, FIRST, REPRESENTATIVES = 3, 2, 2, 2  # of the setting in tests/support/settings/readers.py


def rotated(row: list[float], by: float, frequencies: list[float]) -> list[float]:
    """Return a row [D] turned on by a number of positions, pair by pair."""
    half, found = len(frequencies), list(row)
    for at, frequency in enumerate(frequencies):
        pair = complex(row[at], row[at + half]) * complex(math.cos(by * frequency), math.sin(by * frequency))
        found[at], found[at + half] = pair.real, pair.imag
    return found


@dataclass(kw_only=True)
class BlockLoops(Loops):
    """The first tokens, the blocks that fit best and the newest that left, all as far away as the window is long.

    Args:
        frequencies: of the rotation; none where there is none.
        kv_heads: G.
        mass: per layer and KV head the attention each token has received, frozen once it has left.
    """

    frequencies: list[float]
    kv_heads: int
    mass: dict[tuple[int, int], dict[int, float]] = field(default_factory=dict)
    shown: tuple[Tensor, Tensor] | None = None

    def begin(self, layer: int, queries: Tensor, keys: Tensor) -> None:
        """Note queries [H, D] and keys [G, T, D]."""
        self.shown = queries, keys

    def _clamped(self, row: Tensor, by: float) -> list[float]:
        return rotated(row.tolist(), by, self.frequencies)

    def visible(self, layer: int, group: int, queries: Tensor, keys: Tensor, now: int) -> list[int]:
        """Return the tokens that one token reads of the keys [T, D]."""
        if now < self.prompt:
            return list(range(now + 1))
        gone = now - BUDGET
        whole = (gone - FIRST) // self.size
        blocks = [list(range(FIRST + at * self.size, FIRST + (at + 1) * self.size)) for at in range(whole)]
        best = sorted(range(whole), key=lambda block: -self._fit(layer, blocks[block], now))[: self.most]
        read = [*range(FIRST), *(at for block in best for at in blocks[block])]
        read = sorted([*read, *range(FIRST + whole * self.size, now + 1)])
        self.read.setdefault((layer, group), []).append(read)
        return read

    def _fit(self, layer: int, block: list[int], now: int) -> float:
        assert self.shown is not None
        queries, keys = self.shown
        share, total = len(queries) // self.kv_heads, 0.0
        for group in range(self.kv_heads):
            mass = self.mass[layer, group]
            chosen = sorted(block, key=lambda at: -mass[at])[:REPRESENTATIVES]
            rows = [self._clamped(keys[group, at], -at) for at in chosen]
            mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
            for query in queries[group * share : (group + 1) * share]:
                row = self._clamped(query, BUDGET - now)
                total += sum(a * b for a, b in zip(row, mean, strict=True))
        return total

    def logits(self, layer: int, group: int, queries: Tensor, keys: Tensor, seen: list[int], now: int) -> Tensor:
        """Return products at true distances in the window, and at the largest of them beyond it."""
        found = queries @ keys[seen].T
        for column, at in enumerate(seen):
            if now >= self.prompt and at < now - BUDGET:
                key = queries.new_tensor(self._clamped(keys[at], -at))
                for head, query in enumerate(queries):
                    found[head, column] = key @ query.new_tensor(self._clamped(query, BUDGET - now))
        return found

    def observe(self, layer: int, group: int, weights: Tensor, seen: list[int], now: int) -> None:
        """Add up the attention of tokens that have not left."""
        mass = self.mass.setdefault((layer, group), {})
        for weight, at in zip(weights.mean(dim=0).tolist(), seen, strict=True):
            if now < self.prompt or at >= now - BUDGET:
                mass[at] = mass.get(at, 0.0) + weight


def equals_loops(model_name: str, lengths: Sequence[int] = (PROMPT,)) -> None:
    """Logits of every row equal those of loops over blocks at clamped distances."""
    made, view = strategy("infllm", tokens=BUDGET), view_of(model(model_name))
    rotary = view.layers[0].rotary
    frequencies = [] if rotary is None else rotary.double().tolist()
    texts = [ids(170 + row, 1, length + NEW)[0] for row, length in enumerate(lengths)]
    got = drive(model(model_name), made, padded(texts), RunShape(prompt_lengths=tuple(lengths), new_tokens=NEW))
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        loops = BlockLoops(
            size=SIZE, most=MOST, prompt=length, frequencies=frequencies, kv_heads=view.layers[0].kv_heads
        )
        assert_close(got.logits[row, max(lengths) - length :], by_loops(model_name, text[None], loops)[0])
        sizes = [(len(seen), length + step) for steps in loops.read.values() for step, seen in enumerate(steps)]
        assert any(read <= before for read, before in sizes), "everything was read: the comparison proves nothing"


def representatives_are_the_most_attended() -> None:
    """Of three keys the two with most attention stand for a block, and heads choose together."""
    keys = torch.tensor([[[4.0, 0], [0, 4], [9, 9]], [[1, 1], [3, 3], [9, 9]]]).double()[None, None]  # two blocks
    score = torch.tensor([[[0.5, 0.4, 0.1], [0.1, 0.2, 0.0]]])[None]
    index = Representatives(keys[:, :, 0], 2, 2)
    index.put(0, keys, score)
    (rows,) = index.tensors()
    assert rows.tolist() == [[[[2.0, 2.0], [2.0, 2.0]]]]
    both = Representatives(torch.zeros(1, 2, 3, 2).double(), 2, 1)
    both.put(0, torch.tensor([[[[5.0, 0]], [[0, 0]]], [[[0, 0]], [[0, 4.0]]]]).double()[None], torch.ones(1, 2, 2, 1))
    query = torch.ones(1, 2, 1, 2).double()
    assert both.choose(query, 2, 1).tolist() == [[[0], [0]]]


def planted_key_comes_back() -> None:
    """A key that fits the query is among those read, in whichever block it left."""
    query = rand(1, 2, 1, 8, seed=3)
    for block in range(6):
        keys = rand(1, 2, 6, 4, 8, seed=4) * 0.05
        keys[:, :, block, 2] = query[:, :, 0] * 3
        score = torch.zeros(1, 2, 6, 4)
        score[:, :, :, 2] = 1
        index = Representatives(keys[:, :, 0], 6, 1)
        index.put(0, keys, score)
        assert (index.choose(query, 6, 2) == block).any(dim=-1).all()


def a_short_prompt_is_the_baseline() -> None:
    """While nothing has left the window the output is the full cache's, bit for bit."""
    tokens = ids(171, 2, 8 + 4)
    run = RunShape(prompt_lengths=(8, 8), new_tokens=4)
    one, other = (
        drive(model("llama_gqa"), strategy(name, tokens=BUDGET), tokens, run) for name in ("infllm", "baseline")
    )
    assert torch.equal(one.logits, other.logits)
    longer = drive(model("llama_gqa"), strategy("infllm", tokens=BUDGET), ids(171, 2, PROMPT + NEW), uniform(rows=2))
    full = drive(model("llama_gqa"), strategy("baseline"), ids(171, 2, PROMPT + NEW), uniform(rows=2))
    assert not torch.allclose(longer.logits, full.logits), "clamping changes nothing: this proves nothing"
