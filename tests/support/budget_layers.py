"""Checks of how the layers of a model share a budget, against plain loops and against methods they have to equal."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction

import torch

from kvbench.models.view import view_of
from kvbench.strategies.budget.cascade import Cascade
from kvbench.strategies.budget.lazy import Lazy
from kvbench.strategies.budget.rounding import apportion, spread
from kvbench.types import RunShape
from tests.support import toy
from tests.support.budgets import same, scored, shared
from tests.support.checks import BUDGET, NEW, PROMPT, uniform
from tests.support.drive import drive, padded
from tests.support.models import ids, model
from tests.support.strategies import strategy

# -- CAKE -----------------------------------------------------------------------------------------------------------


def layers_of_the_paper() -> None:
    """CAKE: proportional, exact and within the prompt, what is too much spread evenly."""
    assert apportion([Fraction(want) for want in (8, 4, 2, 2)], 40) == [20, 10, 5, 5]
    assert apportion([Fraction(0)] * 3, 7) == [3, 2, 2]
    assert spread([20, 10, 5, 5], 40) == [20, 10, 5, 5]
    assert spread([20, 10, 5, 5], 12) == [12, 12, 8, 8]
    assert spread([20, 0, 0], 8) == [8, 6, 6]
    made = strategy("cake", "selector.num_recent=4", tokens=14)
    wants = torch.tensor([[8.0, 4.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    score = torch.rand(3, 2, 30, dtype=torch.float64)
    layers = [scored(made, score, (30, 16, 14), statistic=wants[:, at]) for at in range(4)]
    assert [row[0] for row in shared(made, layers)[0]] == [24, 14, 14]
    assert [[heads[0] for heads in layer] for layer in shared(made, layers)] == [
        [24, 14, 14],
        [14, 14, 14],
        [9, 14, 14],
        [9, 14, 14],
    ]


def wholes_are_exact() -> None:
    """Rounding by largest remainder adds up, stays within one of each share, and caps spread evenly."""
    lots = random.Random(2)
    for _ in range(300):
        weights = [Fraction(lots.randint(0, 50), lots.randint(1, 7)) for _ in range(lots.randint(1, 8))]
        total = lots.randint(0, 60)
        counts, whole = apportion(weights, total), sum(weights)
        assert sum(counts) == total
        if whole:
            assert all(abs(n - w * total / whole) < 1 for n, w in zip(counts, weights, strict=True))
        most = lots.randint(-(-total // len(counts)), 61)
        capped = spread(counts, most)
        assert sum(capped) == total
        assert max(capped) <= most
        pairs = [(before, after) for before, after in zip(counts, capped, strict=True) if before < most]
        given = [after - before for before, after in pairs if after < most]
        assert not given or max(given) - min(given) <= 1
        assert all(after - before <= min(given, default=most) + 1 for before, after in pairs)


def cutting_once_is_cutting_layer_by_layer() -> None:
    """CAKE: sharing again and cutting survivors after every layer ends with the sets of one cut at the end."""
    generator = torch.Generator().manual_seed(4)
    entries, num_layers, mean, window = 60, 6, 14, 4
    made = strategy("cake", f"scorer.window={window}", tokens=mean)
    score = torch.rand(num_layers, 1, 2, entries, generator=generator, dtype=torch.float64)
    wants = [3.0, 8.0, 1.5, 4.0, 0.5, 2.0]
    layers = [
        scored(made, score[at], (entries,), torch.tensor([wants[at]], dtype=torch.float64)) for at in range(num_layers)
    ]
    held: list[list[list[int]]] = []
    before: list[int] = []
    for seen in range(1, num_layers + 1):
        held.append([list(range(entries)), list(range(entries))])
        total = (mean - window) * num_layers
        sizes = [min(entries - window, total * want / sum(wants[:seen])) for want in wants[:seen]]
        if seen == num_layers:
            assert max(sizes) < entries - window, "a cap binds: the sets need not be nested"
        cut = [int(size) for size in sizes]
        order = sorted(range(seen), key=lambda at, sizes=sizes: int(sizes[at]) - sizes[at])  # type: ignore[misc]
        for at in order[: max(0, round(sum(sizes)) - sum(cut))]:
            cut[at] += 1
        assert all(new <= old for old, new in zip(before, cut, strict=False)), "a part grew: nothing is nested"
        before = cut
        for at, heads in enumerate(held):
            for head, kept in enumerate(heads):
                old = [j for j in kept if j < entries - window]
                best = sorted(old, key=lambda j, at=at, head=head: score[at, 0, head, j], reverse=True)  # type: ignore[misc]
                heads[head] = sorted(best[: cut[at]]) + list(range(entries - window, entries))
    for at, (layer, ((count, _),)) in enumerate(zip(layers, shared(made, layers), strict=True)):
        assert count is not None
        index, _ = made.selector.keep(layer.score, layer.position, [count], [entries])
        assert index[0].tolist() == held[at]


def layers_hold_their_share(model_name: str) -> None:
    """CAKE: in a whole model the layers of each row hold what was shared out, together the amount, while decoding."""
    made = strategy("cake", tokens=BUDGET)
    assert isinstance(made.budget, Cascade)
    lengths = (17, PROMPT, 20)
    tokens = padded([ids(60 + row, 1, length + NEW)[0] for row, length in enumerate(lengths)])
    run = RunShape(prompt_lengths=lengths, new_tokens=NEW)
    driven = drive(model(model_name), made, tokens, run)
    uneven = False
    for step in driven.held:
        counts = torch.stack([(held >= 0).sum(dim=-1) for held in step])  # [L, B, G]
        assert (counts.sum(dim=0) == BUDGET * len(step)).all()
        uneven |= bool((counts != BUDGET).any())
    assert uneven, "all layers keep alike: the comparison proves nothing"
    assert driven.cache.allocated_bytes() == made.allocated_bytes(view_of(model(model_name)), run)


# -- SimLayerKV -----------------------------------------------------------------------------------------------------


def no_layer_is_lazy_above_one() -> None:
    """SimLayerKV: no attention is above 1, so that a threshold of 1 is the full cache."""
    same("simlayerkv", ("budget.threshold=1.0",), "baseline", ())


def lazy_layers_are_the_sink_method() -> None:
    """SimLayerKV: any attention is above a negative threshold, and lazy layers are sinks and a window."""
    sinks = ("selector.num_sink=2", "strategy/position=original")
    same("simlayerkv", ("budget.threshold=-1.0",), "attention_sink", sinks)


def lazy_rows_alone_are_lazy(model_name: str) -> None:
    """SimLayerKV: each row is judged by what its own queries look at, and lazy ones hold their amount."""
    tokens, run = ids(61, 4, PROMPT + NEW), uniform(rows=4)
    made = strategy("simlayerkv", tokens=BUDGET)
    driven = drive(model(model_name), made, tokens, run)
    seen = set()
    for layer in range(len(driven.held[0])):
        for row in range(4):
            counts = [int((step[layer][row] >= 0).sum()) for step in driven.held]
            assert counts in ([BUDGET] * (NEW + 1), list(range(PROMPT, PROMPT + NEW + 1)))
            seen.add(counts[0])
    assert seen == {BUDGET, PROMPT}, "all are lazy or none: the comparison proves nothing"
    view = view_of(model(model_name))
    assert driven.cache.allocated_bytes() < made.allocated_bytes(view, run)


def a_layer_that_sees_sinks_only_is_lazy() -> None:
    """SimLayerKV: all attention on one sink is 1, above any threshold below; half of it elsewhere is not."""
    for elsewhere, want in ((), 3), ((2,), None):
        query, keys = toy.prompt()
        query = torch.full_like(query, -100.0)
        query[..., [0, *elsewhere]] = 0.0
        made = strategy("simlayerkv", "selector.num_sink=1", "budget.queries=2", "budget.threshold=0.95", tokens=3)
        assert isinstance(made.budget, Lazy)
        mass = made.budget.statistic(replace(toy.view(query, keys), budget=(3,)))
        layer = scored(made, torch.zeros(1, 1, 6), (6,), mass)
        assert shared(made, [layer]) == [[[want]]]
