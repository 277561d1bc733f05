"""R-KV by plain loops; nothing is shared with the scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from kvbench.cache.views import PromptView
from tests.support import toy
from tests.support.checks import BUDGET, NEW, PROMPT, assert_close, uniform
from tests.support.drive import drive
from tests.support.models import ids, model
from tests.support.scorers import Listener, Loops, cosine, events_follow_loops, keys_of, shares
from tests.support.states import States
from tests.support.strategies import strategy

WINDOW, KERNEL, SHARE, THRESHOLD, PERIOD = 3, 3, 0.07, 0.5, 4


def redundancy(keys: list[list[float]], threshold: float = THRESHOLD) -> list[float]:
    """Return how much each key, in order of position, repeats others."""
    columns = [0.0] * len(keys)
    for one, key in enumerate(keys):
        cosines = [0.0 if one == other else cosine(key, keys[other]) for other in range(len(keys))]
        alike = [other for other, number in enumerate(cosines) if number > threshold]
        if alike:
            cosines[alike[-1]] = 0.0
        columns = [total + number for total, number in zip(columns, cosines, strict=True)]
    return shares([total / len(keys) for total in columns])


def importance(
    queries: list[list[list[float]]], keys: list[list[float]], scale: float, window: int = WINDOW, kernel: int = KERNEL
) -> list[float]:
    """Return the votes of queries [members][voters][D] for keys in order of position, 0 for the last `window`."""
    before = max(0, len(keys) - window)
    votes = [0.0] * before
    for voter in range(len(queries[0])):
        logits = [
            max(sum(a * b for a, b in zip(member[voter], key, strict=True)) * scale for member in queries)
            for key in keys[:before]
        ]
        for at, weight in enumerate(shares(logits) if logits else []):
            votes[at] += weight / len(queries[0])
    reach = kernel // 2
    return [max(votes[max(0, at - reach) : at + reach + 1]) for at in range(before)] + [0.0] * (len(keys) - before)


def mixed(queries: list[list[list[float]]], keys: list[list[float]], scale: float, share: float = SHARE) -> list[float]:
    """Return importance less redundancy."""
    pairs = zip(importance(queries, keys, scale), redundancy(keys), strict=True)
    return [share * important - (1 - share) * repeated for important, repeated in pairs]


def scores(share: float = SHARE) -> Loops:
    """The scores at the end of a prompt."""

    def loops(made: States, sinks: int, budget: int) -> list[list[float]]:
        return [
            mixed([made.query[h, -WINDOW:].tolist() for h in made.members(group)], keys.tolist(), made.scale, share)
            for group, keys in enumerate(made.key)
        ]

    return loops


def measured_again_every_period(model_name: str) -> None:
    """R-KV: every so many tokens as many leave, by scores of what is then held and the latest queries."""
    made = strategy("rkv", tokens=BUDGET)
    heard = Listener(made.scorer)
    driven = drive(model(model_name), replace(made, scorer=heard), ids(62, 1, PROMPT + NEW), uniform())

    def loops(view: PromptView, head: int, order: list[int]) -> list[float]:
        share = view.query.shape[1] // view.keys.shape[1]
        queries = view.query[0, head * share : (head + 1) * share, -WINDOW:].tolist()
        return mixed(queries, keys_of(view, head, order), view.scale)

    for view, _ in heard.noted:
        newest = int(view.position.max())
        assert view.query_position[0, -WINDOW:].tolist() == list(range(newest - WINDOW + 1, newest + 1))
    events_follow_loops(heard, driven.held, loops, period=PERIOD, recent=WINDOW)


def last_of_equal_keys_is_least_redundant() -> None:
    """Of three equal keys the last one is overlooked by both others, the second by one, the first by none."""
    apart = torch.eye(8, dtype=torch.float64)
    keys = apart[[0, 1, 0, 2, 0, 3, 4, 5, 6]][None, None]
    score = strategy("rkv", "scorer.importance_share=0.0").scorer.prompt(toy.view(keys, keys))[0, 0].tolist()
    assert score[0] < score[2] < score[4]
    assert score[4] == score[1] == score[3]  # these repeat nothing


def importance_alone() -> None:
    """With all weight on importance the score is the largest vote nearby, as if keys never repeated."""
    generator = torch.Generator().manual_seed(6)
    query, keys = (torch.randn(1, 1, 12, 8, generator=generator).double() for _ in range(2))
    score = strategy("rkv", "scorer.importance_share=1.0").scorer.prompt(toy.view(query, keys))
    want = importance([query[0, 0, -WINDOW:].tolist()], keys[0, 0].tolist(), 1.0)
    assert_close(score[0, 0], torch.tensor(want, dtype=torch.float64))


def short_prompts_are_scored(tokens: Sequence[int] = (1, 2, 3)) -> None:
    """A prompt no longer than the window has nothing before it: its scores are finite."""
    for count in tokens:
        keys = torch.randn(1, 1, count, 8, generator=torch.Generator().manual_seed(8)).double()
        assert strategy("rkv").scorer.prompt(toy.view(keys, keys)).isfinite().all()
