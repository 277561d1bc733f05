"""The layers of a model share what it may keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvbench.cache.protocols import PromptView, Scored, Sharer
from kvbench.strategies.budget.base import Uniform
from kvbench.strategies.budget.rounding import apportion, spread
from kvbench.strategies.selection.fluctuation import window_moments


@dataclass(frozen=True, kw_only=True)
class Cascade(Uniform):
    """A layer keeps the more, the wider its attention is scattered and the more that changes from query to query.

    Source: Qin et al. (CAKE), arXiv:2503.12491; entropy and variance as in antgroup/cakekv.
    Deviates: the layers wait for each other and are cut once, where the paper cuts all layers so far again after each
        one; the sets that stay are the same as long as no layer's part grows on the way, but at its peak the cache
        is a full one. Rows of a batch share apart, and fractions are rounded by largest remainder.

    Args:
        amount: as in Uniform, the mean over layers.
        unit: as in Uniform.
        skip_layers: layers that keep everything.
        window: queries at the end of the prompt whose attention is looked at.
        entropy_temperature: above 0; higher makes layers with scattered attention less different from others.
        variance_temperature: the same for attention that changes.
    """

    scope: ClassVar[Literal["layer", "model"]] = "model"

    window: int
    entropy_temperature: float
    variance_temperature: float

    def __post_init__(self) -> None:
        """Refuse windows and temperatures that mean nothing."""
        super().__post_init__()
        if self.window < 1:
            raise ValueError(f"strategy.budget.window must be at least 1; got {self.window}.")
        for name in ("entropy_temperature", "variance_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"strategy.budget.{name} must be above 0; got {getattr(self, name)}.")

    @property
    def sharer(self) -> Sharer:
        """The budget itself."""
        return self

    def statistic(self, view: PromptView) -> Tensor:
        """Return how much a layer wants to keep [B]: entropy times variance of the window's attention before it."""
        before = max(0, view.keys.shape[2] - self.window)
        wide = torch.float64  # a product of sums over all entries
        entropy = torch.zeros(len(view.budget), dtype=wide, device=view.keys.device)
        for weights, _ in view.attention(last=self.window):
            entropy += torch.special.entr(weights[..., :before].to(wide)).sum(dim=(1, 2, 3, 4))
        _, variance = window_moments(view, self.window)
        spread_out = variance[..., :before].to(wide).sum(dim=(1, 2, 3))
        return entropy ** (1 / self.entropy_temperature) * spread_out ** (1 / self.variance_temperature)

    def share(self, layers: Sequence[Scored]) -> list[list[list[int | None]]]:
        """Return the entries each layer keeps of each row, the same in all its heads."""
        wanted = [layer.statistic.tolist() for layer in layers if layer.statistic is not None]
        rows = [self._layers(layers, [want[row] for want in wanted], row) for row in range(len(layers[0].lengths))]
        return [[[kept[at]] * layer.score.shape[1] for kept in rows] for at, layer in enumerate(layers)]

    def _layers(self, layers: Sequence[Scored], wanted: Sequence[float], row: int) -> list[int | None]:
        plan, length = layers[0].plan, layers[0].lengths[row]
        assert plan.budget is not None
        mean = plan.budget[row]
        if mean >= length:
            return [mean] * len(layers)
        protected = min(mean, plan.selector.num_sink + plan.selector.recent(mean))
        counts = apportion([Fraction(want) for want in wanted], (mean - protected) * len(layers))
        return [protected + count for count in spread(counts, length - protected)]
