"""Entries matter by what their values do to the layer's output."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from kvbench.cache.plan import score_dtype
from kvbench.cache.protocols import Scorer
from kvbench.cache.views import PromptView
from kvbench.strategies.selection.scorer import ScorerDefaults
from kvbench.strategies.selection.selector import Protected
from kvbench.strategies.selection.wrapping import voters_of

_BLOCK = 256  # entries whose projected values exist at once, few enough for a processor's own cache
_ALWAYS = float("inf")


@dataclass(frozen=True, kw_only=True)
class CriticalOutput(ScorerDefaults):
    """Another scorer's best entries first, the others by their score times the size of their projected value.

    The size is the L1 norm of the output projection of the value, averaged over the query heads of the group.

    Source: Feng et al. (CriticalKV), arXiv:2502.03805; stages as CriticalKVPress in NVIDIA/kvpress.
    Deviates: a base that looks at decode steps is asked at the prompt's end only.

    Args:
        base: scores entries by attention, never below 0.
        first_share: of the budget, filled by the base's score alone; protected entries count as its best.
        epsilon: added to the base's score.
        num_sink: first tokens that stay anyway, as the selector has it.
        num_recent: most recent tokens that stay anyway, as the selector has it.
    """

    base: Scorer
    first_share: float
    epsilon: float
    num_sink: int
    num_recent: int

    def __post_init__(self) -> None:
        """Refuse shares that mean nothing."""
        if not 0 <= self.first_share <= 1:
            raise ValueError(f"strategy.scorer.first_share must be between 0 and 1; got {self.first_share}.")
        if not self.epsilon >= 0:
            raise ValueError(f"strategy.scorer.epsilon must be 0 or more; got {self.epsilon}.")

    def voters(self, tokens: int) -> int:
        """Return how many queries the base needs."""
        return voters_of(self.base, tokens)

    def prompt(self, view: PromptView) -> Tensor:
        """Return the weighted scores, and infinity for what the first stage takes [B, G, n].

        Raises:
            ValueError: if the model's output projection is not known.
        """
        output = view.output("strategy/scorer=critical")
        score = self.base.prompt(view).expand(-1, view.shape.kv_heads, -1)
        first = self._first_stage(score, view)
        return ((score + self.epsilon) * projected_size(view.values, output)).masked_fill(first, _ALWAYS)

    def _first_stage(self, score: Tensor, view: PromptView) -> Tensor:
        """Return which entries the base alone chooses [B, G, n]."""
        share = Fraction(str(self.first_share))
        counts = [int(share * entries) for entries in view.budget]
        chooses = Protected(num_sink=self.num_sink, num_recent=self.num_recent, recent_share=0.0)
        index, _ = chooses.keep(score, view.position, counts, [score.shape[2]] * len(counts))
        chosen = torch.zeros((*score.shape[:2], score.shape[2] + 1), dtype=torch.bool, device=score.device)
        spare = score.shape[2]  # a column for what rows with smaller budgets do not choose
        return chosen.scatter(2, torch.where(index < 0, spare, index), value=True)[..., :spare]


def projected_size(values: Tensor, output: Tensor) -> Tensor:
    """Return the L1 norm of each value under the output projection, the mean over its group [B, G, n].

    Args:
        values: [B, G, n, D_v].
        output: of each query head [H, D_v, hidden].
    """
    groups, entries = values.shape[1], values.shape[2]
    share = output.shape[0] // groups
    dtype = score_dtype(values.dtype)
    size = torch.zeros(values.shape[:3], dtype=dtype, device=values.device)
    one = torch.ones(output.shape[2], dtype=dtype, device=values.device)
    for head, projection in enumerate(output):
        for start in range(0, entries, _BLOCK):
            block = slice(start, start + _BLOCK)
            projected = values[:, head // share, block] @ projection
            size[:, head // share, block] += projected.abs_().to(dtype) @ one
    return size / share
