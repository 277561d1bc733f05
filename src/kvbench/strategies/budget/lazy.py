"""Layers that look at nothing but sinks and recent tokens keep nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvbench.cache.protocols import Evicted, Scorer, Selector, Sharer
from kvbench.cache.views import PromptView, Scored
from kvbench.strategies.budget.base import Uniform


@dataclass(frozen=True, kw_only=True)
class Lazy(Uniform):
    """A layer whose last queries pay nearly all attention to sinks and recent tokens keeps the amount, others all.

    Source: Zhang et al. (SimLayerKV), arXiv:2410.13846, the variant that decides when the prompt has been read.
    Deviates: attention is measured on the very entries that would stay, for every query that votes (the authors'
        code counts sinks twice in short prompts); rows of a batch are judged apart; a row whose whole prompt fits
        into the amount keeps everything, new tokens too.

    Args:
        amount: as in Uniform, of a lazy layer.
        unit: as in Uniform; bytes are those of a model with lazy layers only.
        skip_layers: layers that keep everything.
        threshold: attention on sinks and recent tokens above which a layer is lazy; 1 or more if none is to be.
        queries: at the end of the prompt that vote.
        num_sink: first tokens a lazy layer keeps, as the selector has it.
    """

    data_dependent: ClassVar[bool] = True
    by_head: ClassVar[bool] = False
    scope: ClassVar[Literal["layer", "model"]] = "layer"

    threshold: float
    queries: int
    num_sink: int

    def __post_init__(self) -> None:
        """Refuse numbers of queries that mean nothing."""
        super().__post_init__()
        if self.queries < 1:
            raise ValueError(f"strategy.budget.queries must be at least 1; got {self.queries}.")

    @property
    def sharer(self) -> Sharer:
        """The budget itself."""
        return self

    def refusal(self, scorer: Scorer, selector: Selector, evicted: Evicted, *, by_rank: bool) -> str | None:
        """Return why a lazy layer would keep other entries than those its attention is measured on, or None."""
        if not scorer.is_recency or scorer.voters(self.queries) < self.queries:
            return (
                f"strategy/budget=lazy needs entries scored by recency and strategy.budget.queries={self.queries} "
                f"queries at hand; use strategy/scorer=recent_run with at least as many strategy.scorer.queries."
            )
        if by_rank:
            return "strategy/budget=lazy needs strategy/position=original: some layers keep everything."
        if selector.num_sink != self.num_sink:
            return (
                f"strategy.budget.num_sink must be strategy.selector.num_sink={selector.num_sink}; got {self.num_sink}."
            )
        return None

    def statistic(self, view: PromptView) -> Tensor:
        """Return the share of attention that the last queries pay to what a lazy layer keeps, over all heads [B]."""
        position = view.position[:, 0]
        recent = torch.tensor(view.budget, device=position.device)[:, None] - self.num_sink
        stays = (position < self.num_sink) | (position > position.amax(dim=-1, keepdim=True) - recent)
        mass = torch.zeros(len(view.budget), dtype=torch.float64, device=position.device)
        votes = torch.zeros_like(mass)
        for weights, at in view.attention(last=self.queries):
            mass += (weights * stays[:, None, None, None, : weights.shape[-1]]).sum(dim=-1).mean(dim=(1, 2)).sum(dim=-1)
            votes += (at >= 0).sum(dim=-1)
        return (mass / votes).clamp(max=1.0)

    def share(self, layers: Sequence[Scored]) -> list[list[list[int | None]]]:
        """Return the amount for each row of a lazy layer and None for the others."""
        return [[[most] for most in self._rows(layer)] for layer in layers]

    def _rows(self, layer: Scored) -> list[int | None]:
        plan, mass = layer.plan, layer.statistic
        assert plan.budget is not None
        assert mass is not None
        return [
            kept if share > self.threshold and kept < length else None
            for kept, share, length in zip(plan.budget, mass.tolist(), layer.lengths, strict=True)
        ]
