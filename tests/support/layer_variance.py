"""Checks of D2O's shares of layers."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import torch

from kvbench.cache.views import Scored
from kvbench.models.view import view_of
from kvbench.types import RunShape
from tests.support.checks import BUDGET, NEW, PROMPT
from tests.support.drive import drive, padded
from tests.support.models import LAYERS, ids, model
from tests.support.strategies import strategy

LENGTHS = (PROMPT, 17)


def layers_share_by_the_variance_of_their_scores(model_name: str, *overrides: str, budget: int = BUDGET) -> None:
    """Each layer of each row holds what a softmax over the variances of its heads' column sums gives it."""
    network = model(model_name)
    tokens = padded([ids(30 + row, 1, length + NEW)[0] for row, length in enumerate(LENGTHS)])
    run = RunShape(prompt_lengths=LENGTHS, new_tokens=NEW)
    noted = drive(network, strategy("h2o", tokens=PROMPT + NEW), tokens[:, :PROMPT], run).scores[0]
    got = drive(network, strategy("d2o", *overrides, tokens=budget), tokens, run)
    for row, length in enumerate(LENGTHS):
        want = _shares([_variance(noted[layer][row], length) for layer in range(LAYERS)], budget, length)
        assert sum(want) == LAYERS * budget
        assert len(set(want)) > 1, "the layers are alike: the comparison proves nothing"
        for step in got.held:
            held = [(layer[row] >= 0).sum(dim=-1).tolist() for layer in step]
            assert held == [[each] * len(held[0]) for each in want], f"row {row}"


def _variance(heads: list[dict[int, float]], length: int) -> float:
    return sum(statistics.pvariance([scores[at] for at in range(length)]) for scores in heads) / len(heads)


def _shares(variances: list[float], budget: int, most: int) -> list[int]:
    low, high = min(variances), max(variances)
    parts = [math.exp(-(each - low) / (high - low)) for each in variances]
    exact = [part / sum(parts) * budget * len(parts) for part in parts]
    counts = [math.floor(each) for each in exact]
    while sum(counts) < budget * len(parts):
        counts[max(range(len(parts)), key=lambda at: exact[at] - counts[at])] += 1
    excess = max(0, max(counts) - most)  # a layer holds no more than the prompt: the other one gets it
    return [each - excess if each == max(counts) else each + excess for each in counts]


def padding_has_no_part() -> None:
    """Rows of a padded batch share as they would alone, among layers of three different variances."""
    run = RunShape(prompt_lengths=(30,), new_tokens=0)
    made = strategy("d2o", tokens=10)
    plan = replace(made.plans(view_of(model("llama_gqa")), run)[0], budget=(10,))
    scores = torch.rand(3, 1, 2, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spread, least = torch.tensor([[1.0, 1.5, 3.0], [9.0, 3.0, 1.0]], dtype=torch.float64)[..., None, None, None]
    scores = spread * scores + least  # beside zeros the first would be the layer that varies most
    position = torch.arange(30)[None, None]
    pads = torch.zeros(3, 1, 2, 9, dtype=torch.float64), torch.full((1, 1, 9), -1)
    assert made.budget.sharer is not None
    alone, padded_ones = (
        made.budget.sharer.share(
            [Scored(plan=plan, score=one, position=at, statistic=None, lengths=(30,)) for one in all_of]
        )
        for all_of, at in (
            (scores, position),
            (torch.cat([pads[0], scores], dim=-1), torch.cat([pads[1], position], dim=-1)),
        )
    )
    assert len({layer[0][0] for layer in alone}) == 3
    assert alone == padded_ones


def the_first_and_last_layers_of_deep_models_stay_whole() -> None:
    """Of eight layers the first two and the last keep everything, of six none does."""
    shape = view_of(model("llama_gqa"))
    run = RunShape(prompt_lengths=(PROMPT,), new_tokens=4)
    for layers, want in ((8, [0, 1, 7]), (6, [])):
        deep = replace(shape, layers=shape.layers * (layers // LAYERS))
        plans = strategy("d2o", tokens=BUDGET).plans(deep, run)
        assert [plan.index for plan in plans if plan.budget is None] == want
        assert all(plan.budget in (None, (BUDGET,)) for plan in plans)


def a_share_holds_what_is_protected() -> None:
    """However uneven the variances, no layer keeps fewer entries than its sinks and recent ones, nor too many."""
    for sinks in (4, 5, 6):
        made = strategy("d2o", f"selector.num_sink={sinks}", tokens=BUDGET)
        driven = drive(
            model("llama_gqa"), made, ids(32, 1, PROMPT + NEW), RunShape(prompt_lengths=(PROMPT,), new_tokens=NEW)
        )
        for step, layers in enumerate(driven.held):
            counts = [int((held[0, 0] >= 0).sum()) for held in layers]
            assert sum(counts) == LAYERS * BUDGET
            for held, count in zip(layers, counts, strict=True):
                newest = PROMPT - 1 + step
                must = {*range(sinks), *range(newest - count // 2 + 1, newest + 1)}
                assert all(must <= set(kept) for kept in held[0].tolist()), f"step {step}"
