"""Heads keep what the cheapest policy that recovers enough of their attention keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvbench.cache.plan import LayerPlan
from kvbench.cache.protocols import Evicted, Scorer, Selector, Sharer
from kvbench.cache.views import PromptView, Scored
from kvbench.strategies.selection.policies import PolicyOrder, mean_received, rules, sizes
from kvbench.types import ModelView, RunShape

LONG = 1 << 30  # tokens, more than any prompt has


@dataclass(frozen=True, kw_only=True)
class CheapestPolicy:
    """Each head takes the first policy that keeps enough of its queries' attention; none is: everything.

    Source: Ge et al. (FastGen), arXiv:2310.01801, sec. 3; policies special, +heavy, +local, full.
    Deviates: special tokens are the first ones and there is no policy for punctuation, because token ids do not
        reach a cache; heavy and recent entries do not overlap; shares are of the prompt, so that what a head keeps
        is constant while decoding.

    Args:
        threshold: mean attention that must be recovered; above 1 for none but full.
        num_special: first tokens, which every policy keeps.
        heavy_share: as in PolicyOrder.
        local_share: as in PolicyOrder.
    """

    limits: ClassVar[bool] = True
    data_dependent: ClassVar[bool] = True
    by_head: ClassVar[bool] = True
    scope: ClassVar[Literal["layer", "model"]] = "layer"

    threshold: float
    num_special: int
    heavy_share: float
    local_share: float

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if not self.threshold >= 0:
            raise ValueError(f"strategy.budget.threshold must be at least 0; got {self.threshold}.")
        if self.num_special < 1:
            raise ValueError(f"strategy.budget.num_special must be at least 1; got {self.num_special}.")
        for name in ("heavy_share", "local_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"strategy.budget.{name} must be between 0 and 1; got {getattr(self, name)}.")

    @property
    def sharer(self) -> Sharer:
        """The budget itself."""
        return self

    @property
    def order(self) -> PolicyOrder:
        """What the policies keep, which the selector must agree with."""
        return PolicyOrder(
            num_sink=self.num_special,
            num_recent=0,
            recent_share=0.0,
            heavy_share=self.heavy_share,
            local_share=self.local_share,
        )

    def refusal(self, scorer: Scorer, selector: Selector, evicted: Evicted, *, by_rank: bool) -> str | None:
        """Return why heads would keep other entries than those their attention is measured on, or None."""
        if selector != self.order:
            return (
                "strategy/budget=cheapest_policy needs strategy/selector=policy_order with the same num_special, "
                "heavy_share and local_share."
            )
        if not scorer.per_head or scorer.voters(LONG) < LONG or evicted.num_reserved > 0 or by_rank:
            return (
                "strategy/budget=cheapest_policy needs strategy/scorer=mean_attention, strategy/evicted=drop and "
                "strategy/position=original: all queries of the prompt vote on the very entries that heads keep."
            )
        return None

    def entries(self, plans: Sequence[LayerPlan], view: ModelView, run: RunShape) -> list[tuple[int, ...] | None]:
        """Return what the largest policy but full keeps."""
        kept = tuple(sizes(self.order, length)[-1] for length in run.prompt_lengths)
        return [kept] * len(plans)

    def statistic(self, view: PromptView) -> Tensor:
        """Return the attention that the policies recover, in the mean over all queries [B, G, policies]."""
        kept = self._kept(view)
        mass = (view.attention_received()[:, :, None] * kept).sum(dim=-1)
        return mass / (view.query_position >= 0).sum(dim=-1)[:, None, None]

    def share(self, layers: Sequence[Scored]) -> list[list[list[int | None]]]:
        """Return what the chosen policies keep; None where no policy recovers enough."""
        out = []
        for layer in layers:
            assert layer.statistic is not None
            out.append(
                [
                    [self._choice(masses, sizes(self.order, length)) for masses in heads]
                    for heads, length in zip(layer.statistic.tolist(), layer.lengths, strict=True)
                ]
            )
        return out

    def _choice(self, masses: Sequence[float], kept: Sequence[int]) -> int | None:
        enough = (entries for mass, entries in zip(masses, kept, strict=True) if mass >= self.threshold)
        return next(enough, None)

    def _kept(self, view: PromptView) -> Tensor:
        """Return 1 for what the policies keep of each row and head, else 0 [B, G, policies, n]."""
        score, columns = mean_received(view), view.keys.shape[2]
        batch, heads = score.shape[:2]
        kept = torch.zeros((batch, heads, 3, columns + 1), dtype=torch.float64, device=score.device)
        for row, newest in enumerate(view.position[:, 0].amax(dim=-1).tolist()):
            one, length = slice(row, row + 1), newest + 1
            policies = zip(rules(self.order, length), sizes(self.order, length), strict=True)
            for policy, (rule, count) in enumerate(policies):
                index, _ = rule.keep(score[one], view.position[one], [count], [length])
                kept[row, :, policy].scatter_(1, index[0], 1.0)
        return kept[..., :columns]
