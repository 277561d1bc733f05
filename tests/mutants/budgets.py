"""Budgets and their scorers that each get one thing wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.plan import LayerPlan
from kvbench.cache.views import Observation, PromptView, Scored
from kvbench.strategies.budget import adaptive, cascade, pyramid
from kvbench.strategies.budget.adaptive import Adaptive
from kvbench.strategies.budget.cascade import Cascade
from kvbench.strategies.budget.lazy import Lazy
from kvbench.strategies.budget.pyramid import Pyramid
from kvbench.strategies.selection import fluctuation
from kvbench.strategies.selection.defensive import Defensive
from kvbench.strategies.selection.fluctuation import Fluctuation
from tests.mutants.core_mutant import Mutant
from tests.support import budget_layers, budget_scores, budgets

steps, counted, layers_of = Pyramid._steps, Pyramid._bytes, Pyramid._layers
share, moments, statistic = Adaptive.share, fluctuation.window_moments, Lazy.statistic
maximum = torch.maximum
attention = Defensive._attention
sets_of = [
    partial(budgets.sets_equal_a_plain_contest, name, model)
    for name, model in (("adakv", "llama_gqa"), ("defensivekv", "llama_mha"))
]


def truncated(weights: Sequence[Fraction], total: int) -> list[int]:
    """Round down and leave it at that."""
    return [int(weight * total / (sum(weights) or 1)) for weight in weights]


def window_in_the_steps(self: Pyramid, plans: Any, mean: int, length: int) -> list[int]:
    """Let the protected entries take part."""
    selector = replace(plans[0].selector, num_recent=0)
    return steps(self, [replace(plan, selector=selector) for plan in plans], mean, length)


def without_a_cap(self: Pyramid, plans: Any, mean: int, length: int) -> list[int]:
    """Give the first layer more than there is."""
    return steps(self, plans, mean, length if mean >= length else 1_000_000)


def steeper(self: Pyramid, plans: Any, mean: int, length: int) -> list[int]:
    """Divide by one more."""
    return steps(replace(self, steepness=self.steepness + 1), plans, mean, length)


def as_if_uniform(self: Pyramid, plans: Any, rows: Any, view: Any, run: Any) -> Any:
    """Take what would fit if all layers were equal."""
    return layers_of(self, plans, rows, run)


def counted_twice(self: Pyramid, *arguments: Any) -> int:
    """Count every byte twice."""
    return 2 * counted(self, *arguments)


def heads(budget: Adaptive, layer: Scored, row: int) -> list[int]:
    """Return what the heads of one layer keep of a row."""
    return [kept for kept in share(budget, [layer])[0][row] if kept is not None]


def by_layer(broken: Callable[[Adaptive, Scored, int], list[int]]) -> Callable[[Adaptive, Sequence[Scored]], Any]:
    """Return what shares layer by layer and row by row."""
    return lambda self, layers: [[broken(self, layer, row) for row in range(len(layer.lengths))] for layer in layers]


def rounded_head_by_head(self: Adaptive, layer: Scored, row: int) -> list[int]:
    """Mix the contest with equal heads, and round each head."""
    free = heads(replace(self, safeguard=0.0), layer, row)
    assert layer.plan.budget is not None
    mean, part = layer.plan.budget[row], self.safeguard
    return [round(count * (1 - part) + int(mean * part)) for count in free]


def without_a_safeguard(self: Adaptive, layer: Scored, row: int) -> list[int]:
    """Let a head starve."""
    return heads(replace(self, safeguard=0.0), layer, row)


def without_protection(self: Adaptive, layer: Scored, row: int) -> list[int]:
    """Let the window compete."""
    selector = replace(layer.plan.selector, num_recent=0, num_sink=0)  # type: ignore[type-var]
    return heads(self, replace(layer, plan=replace(layer.plan, selector=selector)), row)


def equal_heads(self: Adaptive, layer: Scored, row: int) -> list[int]:
    """Give every head the same."""
    assert layer.plan.budget is not None
    return [layer.plan.budget[row]] * layer.score.shape[1]


def first_head_wins(priority: Tensor, total: int) -> list[int]:
    """Give the first head what ties."""
    best = priority.flatten().sort(descending=True, stable=True).indices[:total] // priority.shape[1]
    won: list[int] = torch.bincount(best, minlength=len(priority)).tolist()
    return won


def equal_layers(self: Cascade, shown: Sequence[float], mean: int, plan: LayerPlan) -> list[int]:
    """Give every layer the same."""
    return [mean] * len(shown)


def of_the_population(view: PromptView, window: int) -> tuple[Tensor, Tensor]:
    """Divide by as many as there are."""
    mean, variance = moments(view, window)
    return mean, variance * (window - 1) / window


def without_variance(view: PromptView, window: int) -> tuple[Tensor, Tensor]:
    """Look at the mean alone."""
    mean, variance = moments(view, window)
    return mean, torch.zeros_like(variance)


def remembering(self: Fluctuation, seen: Observation) -> None:
    """Add to what was received before."""
    seen.score.add_(seen.weights.mean(dim=2))


def one_recent_too_many(self: Lazy, view: PromptView) -> Tensor:
    """Measure what would not stay."""
    return statistic(self, replace(view, budget=tuple(most + 1 for most in view.budget)))


def by_one_head(self: Lazy, view: PromptView) -> Tensor:
    """Ask the first query head of each group."""
    share = view.shape.query_heads // view.shape.kv_heads
    return statistic(self, replace(view, query=view.query[:, ::share]))


def busy(self: Lazy, layer: Scored) -> list[int | None]:
    """Take busy layers for lazy ones."""
    assert layer.plan.budget is not None
    assert layer.statistic is not None
    return [
        most if mass < self.threshold else None
        for most, mass in zip(layer.plan.budget, layer.statistic.tolist(), strict=True)
    ]


def mean_case(self: Defensive, view: PromptView, held: Tensor) -> tuple[Tensor, Tensor]:
    """Look at the mean alone."""
    _, mean = attention(self, view, held)
    return mean, mean


def without_a_floor(one: Tensor, other: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Take the larger one while looking for the worst case, and the first one where the floor would come."""
    return one if out is None else maximum(one, other, out=out)


def not_rescaled(self: Defensive, weights: Tensor, held: Tensor) -> Tensor:
    """Lose what is smoothed over the ends."""
    rows = weights.flatten(0, -2)[:, None]
    pooled = torch.nn.functional.avg_pool1d(rows, self.kernel, stride=1, padding=self.kernel // 2)
    return pooled.view_as(weights).masked_fill(~held, 0.0)


def everything_certain(self: Defensive, mean: Tensor, budget: tuple[int, ...]) -> Tensor:
    """Put the best of the mean first, however much they take."""
    most = torch.tensor(budget)[:, None, None] - self.num_recent
    return mean.argsort(dim=-1, descending=True).argsort(dim=-1) < most


def _mutant(name: str, owner: object, attribute: str, broken: object, *killed_by: Callable[[], None]) -> Mutant:
    return Mutant(name=name, patches=((owner, attribute, broken),), killed_by=killed_by)


MUTANTS = (
    _mutant(
        "steps are truncated",
        pyramid,
        "apportion",
        truncated,
        budgets.steps_of_the_paper,
        budgets.layers_add_up_and_never_rise,
    ),
    _mutant("the window is part of the steps", Pyramid, "_steps", window_in_the_steps, budgets.steps_of_the_paper),
    _mutant(
        "the first layer has no cap",
        Pyramid,
        "_steps",
        without_a_cap,
        budgets.steps_of_the_paper,
        budgets.layers_add_up_and_never_rise,
        budgets.layers_follow_ratios,
    ),
    _mutant("the pyramid is steeper", Pyramid, "_steps", steeper, budgets.a_flat_pyramid_is_snapkv_bit_for_bit),
    _mutant(
        "bytes are those of equal layers", Pyramid, "_fitting", as_if_uniform, budgets.a_pyramid_of_bytes_is_within_them
    ),
    _mutant("bytes are counted twice", Pyramid, "_bytes", counted_twice, budgets.bytes_are_used_up),
    _mutant(
        "heads are rounded one by one",
        Adaptive,
        "share",
        by_layer(rounded_head_by_head),
        budgets.heads_of_the_paper,
        budgets.heads_equal_a_plain_contest,
    ),
    _mutant(
        "no head is safe",
        Adaptive,
        "share",
        by_layer(without_a_safeguard),
        budgets.heads_of_the_paper,
        budgets.heads_equal_a_plain_contest,
        budgets.a_full_safeguard_is_snapkv_bit_for_bit,
    ),
    _mutant(
        "the window competes",
        Adaptive,
        "share",
        by_layer(without_protection),
        budgets.heads_of_the_paper,
        budgets.heads_equal_a_plain_contest,
        sets_of[1],
    ),
    _mutant(
        "heads keep alike",
        Adaptive,
        "share",
        by_layer(equal_heads),
        *sets_of,
        budgets.a_contest_retains_more_than_equal_heads,
    ),
    _mutant(
        "ties go to the first head", adaptive, "_winners", first_head_wins, budgets.heads_that_are_alike_keep_alike
    ),
    Mutant(
        name="layers are truncated",
        patches=((cascade, "apportion", truncated), (budget_layers, "apportion", truncated)),
        killed_by=(
            budget_layers.layers_of_the_paper,
            budget_layers.wholes_are_exact,
            partial(budget_layers.layers_hold_their_share, "llama_gqa"),
        ),
    ),
    _mutant(
        "layers keep alike",
        Cascade,
        "parts",
        equal_layers,
        budget_layers.cutting_once_is_cutting_layer_by_layer,
        partial(budget_layers.layers_hold_their_share, "llama_gqa"),
    ),
    Mutant(
        name="variance is that of a population",
        patches=((cascade, "window_moments", of_the_population), (fluctuation, "window_moments", of_the_population)),
        killed_by=(budget_scores.wants_equal_plain_loops, budget_scores.fluctuation_equals_plain_loops),
    ),
    _mutant(
        "fluctuation is the mean",
        fluctuation,
        "window_moments",
        without_variance,
        budget_scores.fluctuation_equals_plain_loops,
        budget_scores.fluctuation_of_the_worked_example,
    ),
    _mutant(
        "fluctuation remembers",
        Fluctuation,
        "observe",
        remembering,
        budget_scores.fluctuation_decodes_by_the_latest_query,
    ),
    _mutant(
        "laziness counts one more",
        Lazy,
        "statistic",
        one_recent_too_many,
        budget_scores.laziness_equals_plain_loops,
        budget_scores.laziness_of_the_worked_example,
    ),
    _mutant("laziness asks one head", Lazy, "statistic", by_one_head, budget_scores.laziness_equals_plain_loops),
    _mutant(
        "busy layers are lazy",
        Lazy,
        "_rows",
        busy,
        budget_layers.no_layer_is_lazy_above_one,
        budget_layers.lazy_layers_are_the_sink_method,
        budget_layers.a_layer_that_sees_sinks_only_is_lazy,
    ),
    _mutant(
        "lazy layers are busy",
        Lazy,
        "_rows",
        lambda self, layer: [None] * len(layer.lengths),
        partial(budget_layers.lazy_rows_alone_are_lazy, "llama_gqa"),
    ),
    _mutant(
        "the mean case counts",
        Defensive,
        "_attention",
        mean_case,
        budget_scores.defence_equals_plain_loops,
        budget_scores.one_spike_ranks_first,
    ),
    _mutant("no head has a floor", torch, "maximum", without_a_floor, budget_scores.defence_equals_plain_loops),
    _mutant("smoothing loses", Defensive, "_smooth", not_rescaled, budget_scores.defence_equals_plain_loops),
    _mutant("all is certain", Defensive, "_certain", everything_certain, budget_scores.defence_equals_plain_loops),
)
