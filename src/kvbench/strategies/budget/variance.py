"""Layers whose attention is spread evenly keep more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch

from kvbench.cache.plan import LayerPlan
from kvbench.cache.views import Scored
from kvbench.strategies.budget.layers import LayerShares
from kvbench.strategies.budget.rounding import apportion_at_least, least_budget
from kvbench.types import ModelView, RunShape


@dataclass(frozen=True, kw_only=True)
class ByVariance(LayerShares):
    """A layer's part falls with the variance of its scores, by a softmax over the layers.

    Variances are the mean over heads, and scaled so that the layers' range from 0 to 1.

    Source: Wan et al. (D2O), arXiv:2406.13035, and their code.
    Deviates: the parts add up to the amount exactly and are no less than what is protected, where the code clamps
        each on its own; layers are left whole in models that are deep enough only.

    Args:
        amount: as in LayerShares.
        unit: as in Uniform.
        skip_layers: layers that keep everything; negative numbers count from the last one.
        least_layers: models with fewer layers skip none.
    """

    least_layers: int

    def entries(self, plans: Sequence[LayerPlan], view: ModelView, run: RunShape) -> list[tuple[int, ...] | None]:
        """Return the mean for every layer that is not skipped."""
        layers = len(plans)
        skipped = [index + layers if index < 0 else index for index in self.skip_layers]
        chosen = tuple(skipped) if layers >= self.least_layers else ()
        return super(ByVariance, replace(self, skip_layers=chosen)).entries(plans, view, run)

    def shown(self, layer: Scored) -> list[float]:
        """Return the variance of a layer's scores."""
        return _variance(layer)

    def parts(self, shown: Sequence[float], mean: int, plan: LayerPlan) -> list[int]:
        """Return parts that fall with the variance, none below what is protected."""
        low, width = min(shown), max(shown) - min(shown)
        falls = torch.tensor([-(each - low) / width if width > 0 else 0.0 for each in shown], dtype=torch.float64)
        weights = [Fraction(weight) for weight in falls.softmax(dim=0).tolist()]
        return apportion_at_least(weights, mean * len(shown), least_budget(plan, mean))


def _variance(layer: Scored) -> list[float]:
    """Return the variance of the scores of each row, padding not counted, as the mean over its kept sets."""
    exists = layer.position >= 0
    number = exists.sum(dim=-1)
    mean = (layer.score * exists).sum(dim=-1) / number
    squares = (layer.score - mean[..., None]).square() * exists
    variance: list[float] = (squares.sum(dim=-1) / number).mean(dim=1).tolist()
    return variance
