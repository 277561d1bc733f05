"""A mean over layers, which share it once all of them have read the prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from kvbench.cache.plan import LayerPlan
from kvbench.cache.protocols import Sharer
from kvbench.cache.views import PromptView, Scored
from kvbench.strategies.budget.base import Uniform
from kvbench.strategies.budget.rounding import spread


@dataclass(frozen=True, kw_only=True)
class LayerShares(Uniform, ABC):
    """Layers keep different numbers of entries, the same in all heads of a layer; rows of a batch share apart.

    Args:
        amount: as in Uniform, the mean over the layers that do not keep everything.
        unit: as in Uniform.
        skip_layers: layers that keep everything.
    """

    scope: ClassVar[Literal["layer", "model"]] = "model"
    by_head: ClassVar[bool] = False

    @property
    def sharer(self) -> Sharer:
        """The budget itself."""
        return self

    def statistic(self, view: PromptView) -> Tensor | None:
        """Return what a layer has to show [B], or None where its scores say it all."""
        return None

    def shown(self, layer: Scored) -> list[float]:
        """Return what a layer has to show, row by row."""
        assert layer.statistic is not None
        numbers: list[float] = layer.statistic.tolist()
        return numbers

    @abstractmethod
    def parts(self, shown: Sequence[float], mean: int, plan: LayerPlan) -> list[int]:
        """Return the entries of each layer, as if prompts were as long as it takes.

        Args:
            shown: by each layer.
            mean: entries of a layer; so many times the layers are given out.
            plan: of a layer.
        """

    def share(self, layers: Sequence[Scored]) -> list[list[list[int | None]]]:
        """Return the entries each layer keeps of each row, the same in all its heads."""
        shown = [self.shown(layer) for layer in layers]
        rows = [self._row(layers[0], [mine[row] for mine in shown], row) for row in range(len(layers[0].lengths))]
        return [[[kept[at]] * layer.score.shape[1] for kept in rows] for at, layer in enumerate(layers)]

    def _row(self, layer: Scored, shown: Sequence[float], row: int) -> list[int]:
        plan = layer.plan
        assert plan.budget is not None
        mean, most = plan.budget[row], layer.lengths[row] + plan.num_reserved
        return [mean] * len(shown) if mean >= most else spread(self.parts(shown, mean, plan), most)
