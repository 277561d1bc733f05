"""The heads of a layer share what the layer may keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvbench.cache.protocols import Sharer
from kvbench.cache.views import PromptView, Scored
from kvbench.strategies.budget.base import Uniform
from kvbench.strategies.selection.selector import best

_ALWAYS = float("inf")


@dataclass(frozen=True, kw_only=True)
class Adaptive(Uniform):
    """The best entries of a layer, or of all, stay, whichever head they belong to; the mean over heads is the amount.

    Source: Feng et al. (AdaKV), arXiv:2407.11550, algorithm 1.
    Deviates: each head's guaranteed entries are set aside before the others compete (as in NVIDIA/kvpress), so that
        the layer keeps exactly its amount; the authors' code rounds heads one by one. Scores of different heads have
        to be comparable, as attention weights are.

    Args:
        amount: as in Uniform, the mean over heads.
        unit: as in Uniform.
        skip_layers: layers that keep everything.
        safeguard: the part of the unprotected entries that every head keeps in any case.
        scope: whether heads share with those of their layer, or with those of all layers that do not keep everything.
    """

    by_head: ClassVar[bool] = True

    safeguard: float
    scope: Literal["layer", "model"]

    def __post_init__(self) -> None:
        """Refuse parts that mean nothing."""
        super().__post_init__()
        if not 0 <= self.safeguard <= 1:
            raise ValueError(f"strategy.budget.safeguard must be between 0 and 1; got {self.safeguard}.")
        if self.scope not in ("layer", "model"):
            raise ValueError(f"strategy.budget.scope must be layer or model; got {self.scope!r}.")

    @property
    def sharer(self) -> Sharer:
        """The budget itself."""
        return self

    def statistic(self, view: PromptView) -> Tensor | None:
        """Return nothing: the scores say it all."""
        return None

    def share(self, layers: Sequence[Scored]) -> list[list[list[int | None]]]:
        """Return the entries each head keeps of each row."""
        kept: list[list[list[int | None]]] = [[] for _ in layers]
        for row in range(len(layers[0].lengths)):
            priorities = [self._priority(layer, row) for layer in layers]
            won = _winners(torch.cat(priorities), sum(self._amount(layer, row) for layer in layers))
            for mine, priority in zip(kept, priorities, strict=True):
                mine.append([*won[: len(priority)]])
                won = won[len(priority) :]
        return kept

    def _amount(self, layer: Scored, row: int) -> int:
        assert layer.plan.budget is not None
        return layer.plan.budget[row] * layer.score.shape[1]

    def _priority(self, layer: Scored, row: int) -> Tensor:
        """Return the scores of a row [G, n]; infinite for what every head keeps."""
        plan, length = layer.plan, layer.lengths[row]
        assert plan.budget is not None
        mean = plan.budget[row]
        score, position = layer.score[row, :, -length:], layer.position[row, :, -length:]
        num_recent = plan.selector.recent(mean)
        stays = (position < plan.selector.num_sink) | (position > position.amax() - num_recent)
        priority = score.masked_fill(stays, _ALWAYS)
        protected = min(mean, plan.selector.num_sink + num_recent)
        safe = protected + int(Fraction(str(self.safeguard)) * (mean - protected))
        if safe > 0:
            return priority.masked_fill_(best(priority[None], [min(safe, length)])[0], _ALWAYS)
        return priority


def _winners(priority: Tensor, total: int) -> list[int]:
    """Return how many of the best entries of all heads [G, n] each head has; of equals the later position wins."""
    sets, length = priority.shape
    if total >= sets * length:  # everything stays, and there is room for what follows
        return [total // sets] * sets
    by_position = priority.flip(0).t().reshape(1, 1, -1)  # so that heads that are alike win alike
    kept = best(by_position, [total])
    won: list[int] = kept.view(length, sets).sum(dim=0).flip(0).tolist()
    return won
