"""The newest entries matter most, and the prompt's last queries are at hand."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.strategies.selection.recency import Recency


@dataclass(frozen=True, kw_only=True)
class RecentRun(Recency):
    """Scores an entry by its position, for a budget that asks the prompt's last queries.

    Source: Zhang et al. (SimLayerKV), arXiv:2410.13846: what a lazy layer keeps.

    Args:
        queries: at the end of the prompt that have to be at hand.
    """

    queries: int

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.queries < 1:
            raise ValueError(f"strategy.scorer.queries must be at least 1; got {self.queries}.")

    def voters(self, tokens: int) -> int:
        """Return how many of the last queries must be at hand."""
        return self.queries
