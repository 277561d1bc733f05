"""Entries stay by a head's policy: the first ones, also the heavy ones, also the recent ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import Tensor

from kvbench.cache.views import Observation, PromptView
from kvbench.strategies.selection.scorer import ScorerDefaults
from kvbench.strategies.selection.selector import Protected


@dataclass(frozen=True, kw_only=True)
class MeanAttention(ScorerDefaults):
    """The attention an entry has received, in the mean over the queries that could see it.

    Source: Ge et al. (FastGen), arXiv:2310.01801, sec. 3.
    """

    needs_weights = True

    def voters(self, tokens: int) -> int:
        """Return that all queries of the prompt vote."""
        return tokens

    def prompt(self, view: PromptView) -> Tensor:
        """Return the mean attention received [B, G, n]."""
        return mean_received(view)

    def observe(self, seen: Observation) -> None:
        """Take the group's mean weight into the mean."""
        newest = seen.position.amax(dim=-1, keepdim=True)
        queries = (newest - seen.position + 1).to(seen.score.dtype)
        seen.score.add_((seen.weights.mean(dim=2) - seen.score) / queries)


def mean_received(view: PromptView) -> Tensor:
    """Return the attention entries receive, in the mean over the queries that see them [B, G, n]."""
    received = view.attention_received()
    newest = view.position.amax(dim=-1, keepdim=True)
    queries = (newest - view.position + 1).to(received.dtype)
    return received / queries


@dataclass(frozen=True, kw_only=True)
class PolicyOrder(Protected):
    """What a head keeps follows from how much it keeps: first entries, heavy ones, recent ones, in this order.

    Args:
        num_sink: first tokens, never evicted; what the cheapest policy keeps.
        num_recent: as in Protected.
        recent_share: as in Protected.
        heavy_share: of the prompt, entries with the highest scores.
        local_share: of the prompt, most recent entries.
    """

    heavy_share: float
    local_share: float

    def __post_init__(self) -> None:
        """Refuse shares that mean nothing."""
        super().__post_init__()
        for name in ("heavy_share", "local_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"strategy.selector.{name} must be between 0 and 1; got {getattr(self, name)}.")

    def fit(self, budget: Sequence[int], lengths: Sequence[int]) -> Protected:
        """Return the rule of rows and heads that have one length and keep one number of entries."""
        by_size = dict(zip(sizes(self, lengths[0]), rules(self, lengths[0]), strict=True))
        return by_size.get(budget[0], Protected(num_sink=self.num_sink, num_recent=0, recent_share=0.0))


def sizes(order: PolicyOrder, length: int) -> list[int]:
    """Return how many entries of so long a prompt the policies keep, the cheapest first."""
    special = order.num_sink
    heavy, local = (int(Fraction(str(share)) * length) for share in (order.heavy_share, order.local_share))
    return [special, special + heavy, special + heavy + local]


def rules(order: PolicyOrder, length: int) -> list[Protected]:
    """Return what the policies keep of so long a prompt beside the best scores, the cheapest first."""
    local = int(Fraction(str(order.local_share)) * length)
    return [Protected(num_sink=order.num_sink, num_recent=recent, recent_share=0.0) for recent in (0, 0, local)]
