"""Layers near the input keep more than layers near the output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from kvbench.cache.plan import LayerPlan, padding_bytes
from kvbench.strategies.budget.base import Uniform
from kvbench.strategies.budget.rounding import apportion, largest, spread
from kvbench.types import ModelView, RunShape


@dataclass(frozen=True, kw_only=True)
class Pyramid(Uniform):
    """Entries per layer fall in equal steps from the first layer to the last; their mean is the amount.

    Of the mean b above the protected entries the last layer gets b / steepness and the first one as much more than b
    as the last one gets less. Where that is more than the prompt has, the first layer keeps all and the steps shrink.

    Source: Cai et al. (PyramidKV), arXiv:2406.02069; the cap as in Zefan-Cai/KVCache-Factory.
    Deviates: fractions are rounded by largest remainder, so that the layers add up to the amount (the authors' code
        truncates the last layer and the step and keeps more than it was given); prompts below twice the amount get
        the capped steps, not equal layers; a row whose whole prompt fits is left alone.

    Args:
        amount: as in Uniform, the mean over layers.
        unit: as in Uniform.
        skip_layers: layers that keep everything.
        steepness: the mean over the last layer's entries, the protected ones not counted; 1 makes layers equal.
        layer_ratios: instead of equal steps, the relative sizes of the layers' unprotected entries, one number for
            each layer of the model; empty for equal steps.
    """

    steepness: float
    layer_ratios: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse shapes that mean nothing."""
        super().__post_init__()
        if not self.steepness >= 1:
            raise ValueError(f"strategy.budget.steepness must be at least 1; got {self.steepness}.")
        if any(not ratio >= 0 for ratio in self.layer_ratios) or (self.layer_ratios and not sum(self.layer_ratios)):
            raise ValueError(
                f"strategy.budget.layer_ratios must be 0 or more each, and not all 0; got {list(self.layer_ratios)}."
            )

    def entries(self, plans: Sequence[LayerPlan], view: ModelView, run: RunShape) -> list[tuple[int, ...] | None]:
        """Return fewer entries from layer to layer, None for skipped ones.

        Raises:
            ValueError: if there are as many ratios as the model does not have layers.
        """
        if self.layer_ratios and len(self.layer_ratios) != len(plans):
            raise ValueError(
                f"strategy.budget.layer_ratios needs one number for each of the model's {len(plans)} layers; got "
                f"{len(self.layer_ratios)}."
            )
        uniform = super().entries(plans, view, run)
        chosen = [plan for plan in plans if uniform[plan.index] is not None and plan.shape.window == 0]
        if not chosen:
            return uniform
        rows = uniform[chosen[0].index]
        assert rows is not None
        layers = self._layers(chosen, rows, run)
        if self.unit == "bytes" and self._bytes(chosen, layers, view, run) > self.amount:
            layers = self._fitting(chosen, rows, view, run)
        for plan, kept in zip(chosen, layers, strict=True):
            uniform[plan.index] = kept
        return uniform

    def _layers(self, plans: Sequence[LayerPlan], rows: Sequence[int], run: RunShape) -> list[tuple[int, ...]]:
        """Return the entries of each layer and row, given the mean of each row."""
        by_row = [self._steps(plans, mean, length) for mean, length in zip(rows, run.prompt_lengths, strict=True)]
        return list(zip(*by_row, strict=True))

    def _steps(self, plans: Sequence[LayerPlan], mean: int, length: int) -> list[int]:
        if mean >= length:
            return [mean] * len(plans)
        selector = plans[0].selector
        protected = min(mean, selector.num_sink + selector.recent(mean))
        free, most = mean - protected, length - protected
        total = free * len(plans)
        if self.layer_ratios:
            ratios = [Fraction(str(self.layer_ratios[plan.index])) for plan in plans]
            return [protected + entries for entries in spread(apportion(ratios, total), most)]
        first = min(2 * free - free / Fraction(str(self.steepness)), Fraction(most))
        step = 2 * (first - free) / max(1, len(plans) - 1)
        heights = [first - step * at for at in range(len(plans))] if len(plans) > 1 else [Fraction(free)]
        return [protected + entries for entries in apportion(heights, total)]

    def _fitting(
        self, plans: Sequence[LayerPlan], rows: Sequence[int], view: ModelView, run: RunShape
    ) -> list[tuple[int, ...]]:
        """Return the layers of the largest mean whose bytes are within the amount."""

        def layers(mean: int) -> list[tuple[int, ...]]:
            return self._layers(plans, [mean] * len(rows), run)

        return layers(largest(lambda mean: self._bytes(plans, layers(mean), view, run) <= self.amount, max(rows) - 1))

    def _bytes(
        self, plans: Sequence[LayerPlan], layers: Sequence[tuple[int, ...]], view: ModelView, run: RunShape
    ) -> int:
        planned = (replace(plan, budget=kept) for plan, kept in zip(plans, layers, strict=True))
        return padding_bytes(run) + sum(plan.allocated_bytes(run, view.dtype) for plan in planned)
