"""A few last queries speak for all of them, and chance keeps some of what they pass over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from kvbench.cache.views import PromptView
from kvbench.strategies.selection.lots import exponential, lots
from kvbench.strategies.selection.scorer import ScorerDefaults
from kvbench.strategies.selection.selector import Protected

_LAYERS = 4096  # more than any model has: two seeds never meet in different layers


@dataclass(frozen=True, kw_only=True)
class ProxyAttention(ScorerDefaults):
    """The attention that a share of the prompt's queries pay, the last ones.

    Source: Chen et al. (NACL), arXiv:2408.03675, sec. 3.
    Deviates: with grouped queries the group's mean decides per KV head; the proxies' weights are causal.

    Args:
        share: of the prompt's tokens that vote; at least one does.
    """

    share: float

    def __post_init__(self) -> None:
        """Refuse shares that mean nothing."""
        if not 0 < self.share <= 1:
            raise ValueError(f"strategy.scorer.share must be above 0 and at most 1; got {self.share}.")

    def voters(self, tokens: int) -> int:
        """Return how many queries of a prompt vote."""
        return max(1, int(Fraction(str(self.share)) * tokens))

    def prompt(self, view: PromptView) -> Tensor:
        """Return the attention received from each row's own voters [B, G, n]."""
        lengths = (view.query_position.amax(dim=1) + 1).tolist()
        first = [length - self.voters(length) for length in lengths]
        at = view.query_position
        silent = at < torch.tensor(first, device=at.device, dtype=at.dtype)[:, None]
        return replace(view, query_position=at.masked_fill(silent, -1)).attention_received()


@dataclass(frozen=True, kw_only=True)
class TopAndSampled(Protected):
    """Protected entries and the best scores stay, and some of the others by lot, likelier the higher their score.

    Source: Chen et al. (NACL), arXiv:2408.03675, sec. 3.
    Deviates: shares are of the budget instead of the prompt, so that equal budgets mean equal caches; the lot is a
        hash of seed, layer, KV head and position instead of a generator's state.

    Drawing without replacement with probabilities softmax(score) is keeping the highest scores with Gumbel noise.

    Args:
        num_sink: first tokens, never evicted.
        num_recent: most recent tokens kept at least.
        recent_share: the same as a fraction of the budget; the larger of the two counts.
        sampled_share: fraction of the budget that is drawn by lot, as far as protected entries leave room.
        seed: another seed is another draw.
    """

    sampled_share: float
    seed: int

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        super().__post_init__()
        if not 0 <= self.sampled_share <= 1:
            raise ValueError(f"strategy.selector.sampled_share must be between 0 and 1; got {self.sampled_share}.")

    def of_layer(self, layer: int) -> TopAndSampled:
        """Return the selector of one layer, which draws lots of its own."""
        return replace(self, seed=self.seed * _LAYERS + layer)

    def sampled(self, budget: int) -> int:
        """Return how many entries of a budget are drawn by lot."""
        share = int(Fraction(str(self.sampled_share)) * budget)
        return max(0, min(share, budget - self.num_sink - self.recent(budget)))

    def keep(
        self, score: Tensor, position: Tensor, budget: Sequence[int], lengths: Sequence[int]
    ) -> tuple[Tensor, bool]:
        """Choose entries at the end of the prompt; see `kvbench.cache.protocols.Selector`."""
        device, columns = score.device, score.shape[-1]
        order = columns - 1 - self.priority(score, position, budget).flip(-1).sort(descending=True, stable=True).indices
        firm = torch.tensor([most - self.sampled(most) for most in budget], device=device)[:, None, None]
        rank = torch.arange(columns, device=device).expand_as(order)
        is_firm = torch.empty_like(order, dtype=torch.bool).scatter_(2, order, rank < firm)
        head = torch.arange(score.shape[1], device=device)[:, None]
        lot = exponential(lots(self.seed, 0, head, position), score.dtype)
        drawn = (score - lot.log()).masked_fill(is_firm, torch.inf)
        return super().keep(drawn, position, budget, lengths)
