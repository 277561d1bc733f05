"""Layers whose attention is spread evenly keep more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvbench.cache.plan import LayerPlan
from kvbench.cache.protocols import PromptView, Scored, Sharer
from kvbench.strategies.budget.base import Uniform
from kvbench.strategies.budget.rounding import apportion_at_least, least_budget, spread
from kvbench.types import ModelView, RunShape


@dataclass(frozen=True, kw_only=True)
class ByVariance(Uniform):
    """A layer's part falls with the variance of its scores, by a softmax over the layers.

    Variances are the mean over heads, and scaled so that the layers' range from 0 to 1.

    Source: Wan et al. (D2O), arXiv:2406.13035, and their code.
    Deviates: the parts add up to the amount exactly and are no less than what is protected, where the code clamps
        each on its own; layers are left whole in models that are deep enough only.

    Args:
        amount: as in Uniform, the mean over the layers that do not keep everything.
        unit: as in Uniform.
        skip_layers: layers that keep everything; negative numbers count from the last one.
        least_layers: models with fewer layers skip none.
    """

    scope: ClassVar[Literal["layer", "model"]] = "model"

    least_layers: int

    @property
    def sharer(self) -> Sharer:
        """The budget itself."""
        return self

    def entries(self, plans: Sequence[LayerPlan], view: ModelView, run: RunShape) -> list[tuple[int, ...] | None]:
        """Return the mean for every layer that is not skipped."""
        layers = len(plans)
        skipped = [index + layers if index < 0 else index for index in self.skip_layers]
        chosen = tuple(skipped) if layers >= self.least_layers else ()
        return super(ByVariance, replace(self, skip_layers=chosen)).entries(plans, view, run)

    def statistic(self, view: PromptView) -> Tensor | None:
        """Return nothing: the scores say it all."""
        return None

    def share(self, layers: Sequence[Scored]) -> list[list[list[int | None]]]:
        """Return the entries each layer keeps of each row, the same in all its heads."""
        variances = [_variance(layer) for layer in layers]
        rows = [self._layers(layers, [mine[row] for mine in variances], row) for row in range(len(layers[0].lengths))]
        return [[[kept[at]] * layer.score.shape[1] for kept in rows] for at, layer in enumerate(layers)]

    def _layers(self, layers: Sequence[Scored], variances: Sequence[float], row: int) -> list[int | None]:
        plan, length = layers[0].plan, layers[0].lengths[row]
        assert plan.budget is not None
        mean = plan.budget[row]
        if mean >= length + plan.num_reserved:
            return [mean] * len(layers)
        low, width = min(variances), max(variances) - min(variances)
        falls = torch.tensor([-(each - low) / width if width > 0 else 0.0 for each in variances], dtype=torch.float64)
        weights = [Fraction(weight) for weight in falls.softmax(dim=0).tolist()]
        counts = apportion_at_least(weights, mean * len(layers), least_budget(plan, mean))
        return list(spread(counts, length + plan.num_reserved))


def _variance(layer: Scored) -> list[float]:
    """Return the variance of the scores of each row, padding not counted, as the mean over its kept sets."""
    exists = layer.position >= 0
    number = exists.sum(dim=-1)
    mean = (layer.score * exists).sum(dim=-1) / number
    squares = (layer.score - mean[..., None]).square() * exists
    variance: list[float] = (squares.sum(dim=-1) / number).mean(dim=1).tolist()
    return variance
