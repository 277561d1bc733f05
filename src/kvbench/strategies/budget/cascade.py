"""The layers of a model share what it may keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from kvbench.cache.plan import LayerPlan
from kvbench.cache.views import PromptView
from kvbench.strategies.budget.layers import LayerShares
from kvbench.strategies.budget.rounding import apportion
from kvbench.strategies.selection.fluctuation import window_moments


@dataclass(frozen=True, kw_only=True)
class Cascade(LayerShares):
    """A layer keeps the more, the wider its attention is scattered and the more that changes from query to query.

    Source: Qin et al. (CAKE), arXiv:2503.12491; entropy and variance as in antgroup/cakekv.
    Deviates: the layers wait for each other and are cut once, where the paper cuts all layers so far again after each
        one; the sets that stay are the same as long as no layer's part grows on the way, but at its peak the cache
        is a full one. Rows of a batch share apart, and fractions are rounded by largest remainder.

    Args:
        amount: as in LayerShares.
        unit: as in Uniform.
        skip_layers: layers that keep everything.
        window: queries at the end of the prompt whose attention is looked at.
        entropy_temperature: above 0; higher makes layers with scattered attention less different from others.
        variance_temperature: the same for attention that changes.
    """

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

    def parts(self, shown: Sequence[float], mean: int, plan: LayerPlan) -> list[int]:
        """Return what is protected, and a part of the rest as layers want it."""
        protected = min(mean, plan.num_reserved + plan.selector.num_sink + plan.selector.recent(mean))
        free = apportion([Fraction(want) for want in shown], (mean - protected) * len(shown))
        return [protected + count for count in free]
