"""Scores of single methods by plain loops, and what must hold of them; they share no code with the scorers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.views import PromptView
from kvbench.types import RunShape
from tests.support import toy
from tests.support.checks import BUDGET, NEW, PROMPT, assert_close, uniform
from tests.support.drive import drive, padded, positions
from tests.support.models import ids, model
from tests.support.scores import Wrapped
from tests.support.states import States, states
from tests.support.strategies import strategy

LENGTHS = (17, PROMPT, 9)
Loops = Callable[[States, int, int], list[list[float]]]  # of a layer, with so many sinks, for a budget: per head


class Listener(Wrapped):
    """Notes what a scorer was shown and what it answered."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.noted: list[tuple[PromptView, Tensor]] = []

    def prompt(self, view: PromptView) -> Tensor:
        """Return and note the scores; storage is written on, so what was shown is copied."""
        score: Tensor = self.inner.prompt(view)
        seen = {name: getattr(view, name).clone() for name in ("query", "keys", "values", "position", "query_position")}
        self.noted.append((replace(view, **seen), score.clone()))
        return score


def scores_equal_loops(name: str, model_name: str, loops: Loops, overrides: Sequence[str] = ()) -> None:
    """Every row of a left-padded batch gets the scores that loops over its own text alone give, in every layer."""
    made = strategy(name, *overrides, tokens=BUDGET)
    texts = [ids(60 + row, 1, length)[0] for row, length in enumerate(LENGTHS)]
    heard = Listener(made.scorer)
    drive(model(model_name), replace(made, scorer=heard), padded(texts), RunShape(prompt_lengths=LENGTHS, new_tokens=0))
    for layer, (_, score) in enumerate(heard.noted):
        for row, text in enumerate(texts):
            want = torch.tensor(
                loops(states(model_name, text)[layer], made.selector.num_sink, BUDGET), dtype=torch.float64
            )
            got = score[row, :, PROMPT - len(text) :]
            finite = want.isfinite()
            assert torch.equal(finite, got.isfinite())
            assert_close(got[finite], want[finite])


# -- keys unlike the mean -------------------------------------------------------------------------------------------


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the cosine of two lists of numbers."""
    return sum(a * b for a, b in zip(one, other, strict=True)) / math.hypot(*one) / math.hypot(*other)


def key_difference(made: States, sinks: int, budget: int) -> list[list[float]]:
    """The negative cosine to the mean of the keys' directions."""
    return [unlike_the_mean(keys.tolist()) for keys in made.key]


def unlike_the_mean(keys: list[list[float]]) -> list[float]:
    """The same for the keys of one head."""
    units = [[number / math.hypot(*key) for number in key] for key in keys]
    mean = [sum(channel) / len(keys) for channel in zip(*units, strict=True)]
    return [-cosine(key, mean) for key in keys]


def worked_key_difference() -> None:
    """Six keys in the plane: the two that point elsewhere stay."""
    keys = torch.tensor([[1, 0], [1, 0.1], [1, -0.1], [0, 1], [-1, 0.2], [1, 0.05]], dtype=torch.float64)[None, None]
    made = strategy("keydiff")
    score = made.scorer.prompt(toy.view(keys, keys))
    assert [round(-number, 3) for number in score[0, 0].tolist()] == [0.924, 0.957, 0.881, 0.383, -0.831, 0.942]
    index, _ = made.selector.keep(score, torch.arange(6)[None, None], [2], [6])
    assert index.tolist() == [[[3, 4]]]


def size_of_keys_does_not_matter() -> None:
    """KeyDiff scores stay as they are when every key is multiplied by a number of its own."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(1, 6, 12, 8, generator=generator).double()
    factor = torch.rand(1, 6, 12, 1, generator=generator).double() * 9 + 0.1
    scorer = strategy("keydiff").scorer
    assert_close(scorer.prompt(toy.view(keys, keys * factor)), scorer.prompt(toy.view(keys, keys)))


def measured_again_while_decoding(model_name: str) -> None:
    """KeyDiff with one entry leaving per token: the mean direction is that of what is held, token by token."""
    made = strategy("keydiff", "strategy/trigger=every_step", tokens=BUDGET)
    heard = Listener(made.scorer)
    driven = drive(model(model_name), replace(made, scorer=heard), ids(61, 1, PROMPT + NEW), uniform())
    events_follow_loops(heard, driven.held, lambda view, head, order: unlike_the_mean(keys_of(view, head, order)))


def keys_of(view: PromptView, head: int, order: Sequence[int]) -> list[list[float]]:
    """Return the keys of a head in slots of an order."""
    keys: list[list[float]] = view.keys[0, head, list(order)].tolist()
    return keys


def events_follow_loops(
    heard: Listener,
    held: list[list[Tensor]],
    loops: Callable[[PromptView, int, list[int]], list[float]],
    *,
    period: int = 1,
    recent: int = 0,
) -> None:
    """Scores of every event are those of loops over what was held, and the best of them stay."""
    layers = len(held[0])
    for layer in range(layers):
        noted = heard.noted[layer::layers]
        assert len(noted) == 1 + (len(held) - 1) // period
        for count, (view, score) in enumerate(noted):
            newest = PROMPT - 1 + count * period
            for head in range(score.shape[1]):
                at = view.position.expand(-1, score.shape[1], -1)[0, head].tolist()
                order = sorted((slot for slot in range(len(at)) if at[slot] >= 0), key=lambda slot: at[slot])
                want = loops(view, head, order)
                assert_close(score[0, head, order], torch.tensor(want, dtype=torch.float64))
                merit = [(at[s] > newest - recent, number, at[s]) for s, number in zip(order, want, strict=True)]
                stay = sorted(position for _, _, position in sorted(merit)[-BUDGET:])
                assert positions(held[count * period][layer][0])[head] == stay


# -- ranks against the next partition -------------------------------------------------------------------------------


def lag_rank(lag: int) -> Loops:
    """Rank within partitions of so many entries, by the spread of channels scaled to the next partition's range."""

    def loops(made: States, sinks: int, budget: int) -> list[list[float]]:
        heads = zip(made.key.tolist(), made.value.tolist(), strict=True)
        return [lag_ranks(keys, values, sinks, lag) for keys, values in heads]

    return loops


def lag_ranks(keys: list[list[float]], values: list[list[float]], sinks: int, lag: int) -> list[float]:
    """The ranks of one head's entries."""
    score, first = [1.0] * len(keys), sinks
    while first + 2 * lag <= len(keys):
        merits = [0.0] * lag
        for rows in (keys, values):
            following = zip(*rows[first + lag : first + 2 * lag], strict=True)
            ranges = [(min(channel), max(channel)) for channel in following]
            spread = []
            for row in rows[first : first + lag]:
                pairs = zip(row, ranges, strict=True)
                spread.append(deviation([(x - a) / (b - a) if b > a else 0.0 for x, (a, b) in pairs]))
            merits = [merit + mine / 2 for merit, mine in zip(merits, shares(spread), strict=True)]
        for rank, (_, at) in enumerate(sorted((merit, at) for at, merit in enumerate(merits))):
            score[first + at] = rank / lag
        first += lag
    return score


def shares(numbers: list[float]) -> list[float]:
    """Return the softmax of numbers."""
    powers = [math.exp(number - max(numbers)) for number in numbers]
    return [power / sum(powers) for power in powers]


def deviation(numbers: list[float]) -> float:
    """Return the standard deviation, by one less than there are numbers."""
    mean = sum(numbers) / len(numbers)
    return math.sqrt(sum((number - mean) ** 2 for number in numbers) / (len(numbers) - 1))


def finished_partitions_are_final() -> None:
    """LagKV: what follows changes no score of a partition whose next one is whole; one channel has no range at all."""
    generator = torch.Generator().manual_seed(3)
    keys = torch.randn(1, 4, 30, 8, generator=generator).double()
    keys[:, :, :, 5] = 0.25
    scorer = strategy("lagkv").scorer  # 2 sinks, partitions of 4
    whole = scorer.prompt(toy.view(keys, keys))
    want = [[lag_ranks(head, head, 2, 4) for head in row] for row in keys.tolist()]
    assert_close(whole, torch.tensor(want, dtype=torch.float64))
    for stop in range(1, 30):
        part = scorer.prompt(toy.view(keys[:, :, :stop], keys[:, :, :stop]))
        final = max(0, (stop - 2) // 4 - 1) * 4 + 2
        assert torch.equal(part[..., 2:final], whole[..., 2:final])
        assert (part[..., : min(2, stop)] == 1).all()
        assert (part[..., final:] == 1).all()


def partitions_lose_the_same() -> None:
    """LagKV: with room for sinks, tail and half of each finished partition, every one keeps exactly half."""
    keys = torch.randn(1, 2, 28, 8, generator=torch.Generator().manual_seed(4)).double()
    made = strategy("lagkv")  # 2 sinks, partitions at 2, 6, 10, 14, 18, 22; the last whole one and 2 more are the tail
    score = made.scorer.prompt(toy.view(keys, keys))
    index, _ = made.selector.keep(score, torch.arange(28)[None, None], [2 + 5 * 2 + 6], [28])
    for head in index[0].tolist():
        assert {0, 1, *range(22, 28)} <= set(head)
        assert [sum(first <= at < first + 4 for at in head) for first in (2, 6, 10, 14, 18)] == [2] * 5


def unfinished_text_keeps_the_latest() -> None:
    """LagKV: a text of fewer than two partitions keeps its sinks and its latest entries."""
    keys = torch.randn(1, 2, 9, 8, generator=torch.Generator().manual_seed(5)).double()
    made = strategy("lagkv")
    index, _ = made.selector.keep(made.scorer.prompt(toy.view(keys, keys)), torch.arange(9)[None, None], [5], [9])
    assert index.tolist() == [[[0, 1, 6, 7, 8]] * 2]
