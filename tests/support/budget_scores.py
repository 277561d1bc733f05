"""Checks of the scorers and statistics that budgets rest on, against plain loops over attention weights."""

from __future__ import annotations

import math
from dataclasses import replace
from operator import mul
from statistics import variance

import torch
from torch import Tensor

from kvbench.cache.views import PromptView
from kvbench.strategies.budget.cascade import Cascade
from kvbench.strategies.budget.lazy import Lazy
from kvbench.strategies.selection.defensive import Defensive
from kvbench.strategies.selection.fluctuation import Fluctuation
from kvbench.types import DECODE, LayerShape
from tests.support import toy
from tests.support.checks import assert_close
from tests.support.drive import scores
from tests.support.strategies import strategy

GROUPS, SHARE, WIDTH, HIDDEN, ENTRIES, WINDOW = 2, 3, 4, 10, 11, 3
LENGTHS = (11, 8, 5)  # tokens of each row, padded on the left

Weights = list[list[list[float]]]  # of one row's voters: [query head][query][position]


def view(seed: int = 0) -> PromptView:
    """Return a prompt of padded rows with random queries, keys and values."""
    generator = torch.Generator().manual_seed(seed)
    rows, heads = len(LENGTHS), GROUPS * SHARE

    def draw(*size: int) -> Tensor:
        return 1.5 * torch.randn(size, generator=generator, dtype=torch.float64)

    padding = torch.tensor([ENTRIES - length for length in LENGTHS])[:, None]
    at = (torch.arange(ENTRIES) - padding).clamp(min=-1).int()
    shape = LayerShape(
        query_heads=heads,
        kv_heads=GROUPS,
        key_dim=WIDTH,
        value_dim=WIDTH,
        window=0,
        rotary=None,
        output=draw(heads, WIDTH, HIDDEN),
    )
    return PromptView(
        layer=0,
        shape=shape,
        query=draw(rows, heads, ENTRIES, WIDTH),
        keys=draw(rows, GROUPS, ENTRIES, WIDTH),
        values=draw(rows, GROUPS, ENTRIES, WIDTH),
        position=at[:, None],
        query_position=at,
        scale=0.5,
        budget=(6, 5, 4),
    )


def voters(seen: PromptView, row: int, window: int) -> Weights:
    """Return what the last queries of a row pay to its tokens, one query of one head at a time."""
    length = LENGTHS[row]
    found: Weights = []
    for head in range(GROUPS * SHARE):
        keys = seen.keys[row, head // SHARE, ENTRIES - length :].tolist()
        mine = []
        for now in range(max(0, length - window), length):
            query = seen.query[row, head, ENTRIES - length + now].tolist()
            dots = [sum(map(mul, query, key)) * seen.scale for key in keys[: now + 1]]
            whole = sum(map(math.exp, dots))
            mine.append([math.exp(dot) / whole for dot in dots] + [0.0] * (length - 1 - now))
        found.append(mine)
    return found


def smoothed(row: list[float], kernel: int) -> list[float]:
    """Return means over neighbours, with zeros beyond the ends."""
    half = kernel // 2
    return [sum(row[max(0, at - half) : at + half + 1]) / kernel for at in range(len(row))]


# -- CAKE -----------------------------------------------------------------------------------------------------------


def wants_equal_plain_loops() -> None:
    """CAKE: entropy and sample variance of the window's attention before it, over all heads, to their powers."""
    budget = strategy("cake", f"budget.window={WINDOW}", *_temperatures(2.0, 0.7)).budget
    assert isinstance(budget, Cascade)
    seen, want = view(), []
    for row, length in enumerate(LENGTHS):
        entropy = scatter = 0.0
        for mine in voters(seen, row, WINDOW):
            for at in range(length - WINDOW):
                column = [query[at] for query in mine]
                entropy -= sum(weight * math.log(weight) for weight in column)
                scatter += variance(column)
        want.append(entropy ** (1 / 2.0) * scatter ** (1 / 0.7))
    assert_close(budget.statistic(seen), torch.tensor(want, dtype=torch.float64))


def _temperatures(entropy: float, variance: float) -> tuple[str, str]:
    return (f"budget.entropy_temperature={entropy}", f"budget.variance_temperature={variance}")


def fluctuation_equals_plain_loops() -> None:
    """CAKE: mean plus weighted sample variance per query head, smoothed before the window, the mean over each group."""
    seen = view()
    scorer = Fluctuation(window=WINDOW, kernel=3, variance_weight=20.0)
    got = scorer.prompt(seen)
    for row, length in enumerate(LENGTHS):
        weights = voters(seen, row, WINDOW)
        for group in range(GROUPS):
            want = [0.0] * (length - WINDOW)
            for mine in weights[group * SHARE : (group + 1) * SHARE]:
                columns = [[query[at] for query in mine] for at in range(length - WINDOW)]
                marks = [sum(column) / WINDOW + 20.0 * variance(column) for column in columns]
                want = [sum(pair) for pair in zip(want, smoothed(marks, 3), strict=True)]
            mine_got = got[row, group, ENTRIES - length : ENTRIES - WINDOW]
            assert_close(mine_got, torch.tensor(want, dtype=torch.float64) / SHARE)


def fluctuation_of_the_worked_example() -> None:
    """CAKE: what varies between the last two of six queries stays; without the variance it is their mean."""
    for overrides, want in (
        (("scorer.kernel=1", "scorer.variance_weight=0.0"), {2, 3, 4, 5}),
        (("scorer.kernel=1",), {0, 2, 4, 5}),
        (("scorer.kernel=3",), {1, 2, 4, 5}),
    ):
        toy.prompt_set_is(want, "cake", "scorer.window=2", *overrides)


def fluctuation_decodes_by_the_latest_query() -> None:
    """CAKE: while decoding the latest query's attention alone decides, and the window's newest entries stay."""
    layer = toy.small_layer(strategy("cake", "scorer.window=2", "scorer.kernel=3"))
    toy.feed_prompt(layer)
    assert layer.held_positions().tolist() == [[[1, 2, 4, 5]]]
    layer.attend(toy.query_of({1: 0.2, 2: 0.4, 4: 0.25, 5: 0.1, 6: 0.05}), toy.key_of(6), toy.key_of(6), 1.0, DECODE)
    assert layer.held_positions().tolist() == [[[-1, 2, 4, 5, 6]]]
    (by_position,) = scores(layer, 0)
    assert {at: round(score, 12) for at, score in by_position.items() if at >= 0} == {
        1: 0.2,
        2: 0.4,
        4: 0.25,
        5: 0.1,
        6: 0.05,
    }


# -- SimLayerKV -----------------------------------------------------------------------------------------------------


def laziness_equals_plain_loops() -> None:
    """SimLayerKV: attention of the last queries on sinks and recent entries, the mean over queries and heads."""
    budget = strategy("simlayerkv", "selector.num_sink=2", f"budget.queries={WINDOW}").budget
    assert isinstance(budget, Lazy)
    seen, want = view(), []
    for row, (length, kept) in enumerate(zip(LENGTHS, seen.budget, strict=True)):
        stays = {*range(2), *range(length - (kept - 2), length)}
        weights = voters(seen, row, WINDOW)
        mass = [sum(query[at] for at in stays) for mine in weights for query in mine]
        want.append(sum(mass) / len(mass))
    assert_close(budget.statistic(seen), torch.tensor(want, dtype=torch.float64))


def laziness_of_the_worked_example() -> None:
    """SimLayerKV: one sink and the last two of six tokens get .15 and .40 of the last two queries."""
    budget = strategy("simlayerkv", "selector.num_sink=1", "budget.queries=2").budget
    assert isinstance(budget, Lazy)
    seen = replace(toy.view(*toy.prompt()), budget=(3,))
    assert_close(budget.statistic(seen), torch.tensor([0.275], dtype=torch.float64))


# -- DefensiveKV ----------------------------------------------------------------------------------------------------


def defence_equals_plain_loops(certain: float = 0.5) -> None:
    """DefensiveKV: worst case above the head's mean, times the projected value, behind what is certain."""
    seen = view()
    got = Defensive(window=WINDOW, kernel=3, certain=certain, num_recent=WINDOW).prompt(seen)
    for row, length in enumerate(LENGTHS):
        want, mean = _defence(seen, row)
        top = max(max(head) for head in want)
        for group, head in enumerate(want):
            order = sorted(range(len(head)), key=lambda at, of=mean[group]: (-of[at], at))  # type: ignore[misc]
            taken = 0.0
            for rank, at in enumerate(order):
                taken += mean[group][at] / sum(mean[group])
                if taken < certain and rank < seen.budget[row] - WINDOW:
                    head[at] = top
            mine = got[row, group, ENTRIES - length : ENTRIES - WINDOW]
            assert_close(mine, torch.tensor(head, dtype=torch.float64))


def _defence(seen: PromptView, row: int) -> tuple[list[list[float]], list[list[float]]]:
    """Return the scores of one row without anything certain, and the mean attention, per head and position."""
    length, output = LENGTHS[row], seen.shape.output
    assert output is not None
    weights, before = voters(seen, row, WINDOW), LENGTHS[row] - WINDOW
    risk, mean, size = [], [], []
    for group in range(GROUPS):
        heads = range(group * SHARE, (group + 1) * SHARE)
        rows = [query[:before] for head in heads for query in weights[head]]
        smooth = [smoothed(query, 3) for query in rows]
        smooth = [[w * sum(raw) / sum(new) for w in new] for raw, new in zip(rows, smooth, strict=True)]
        worst = [max(column) for column in zip(*smooth, strict=True)]
        risk.append([max(one, sum(worst) / before) for one in worst])
        mean.append([sum(column) / len(rows) for column in zip(*rows, strict=True)])
        values = seen.values[row, group, ENTRIES - length :].tolist()
        size.append([_size([output[head].tolist() for head in heads], values[at]) for at in range(before)])
    whole = [sum(column) for column in zip(*size, strict=True)]
    return [[risk[g][at] * size[g][at] / whole[at] for at in range(before)] for g in range(GROUPS)], mean


def _size(projections: list[list[list[float]]], value: list[float]) -> float:
    """Return the L1 norm of a projected value, the mean over query heads."""
    norms = [
        sum(abs(sum(value[i] * matrix[i][to] for i in range(WIDTH))) for to in range(HIDDEN)) for matrix in projections
    ]
    return sum(norms) / len(norms)


def one_spike_ranks_first() -> None:
    """DefensiveKV: what one query needs badly stays, though others get more on average; of equals the last stay."""
    head = tuple(tuple([1 / (now + 1)] * (now + 1)) for now in range(4))
    spike = (
        (0.9, 0.02, 0.02, 0.03, 0.03),
        (0.01, 0.4, 0.4, 0.09, 0.05, 0.05),
        (0.01, 0.4, 0.4, 0.09, 0.05, 0.03, 0.02),
        (0.01, 0.4, 0.4, 0.09, 0.05, 0.03, 0.01, 0.01),
    )
    query, keys = toy.prompt(head + spike)
    output = torch.eye(toy.WIDTH, dtype=torch.float64)[None]
    seen = toy.view(query, keys)
    seen = replace(seen, shape=replace(toy.SHAPE, output=output))
    worst = Defensive(window=4, kernel=1, certain=0.0, num_recent=4).prompt(seen)[0, 0, :4]
    votes = strategy("snapkv", "scorer.window=4", "scorer.kernel=1").scorer.prompt(seen)[0, 0, :4]
    assert worst.argmax() == 0
    assert votes.argmax() != 0
    alike = toy.view(torch.zeros_like(query), keys)
    alike = replace(alike, shape=replace(toy.SHAPE, output=output))
    made = strategy("defensivekv", "scorer.window=1", "scorer.kernel=1", "scorer.certain=0.0")
    assert toy.kept(made.scorer, made.selector, alike) == {4, 5, 6, 7}
