"""What a strategy costs in meaning: likelihood, divergence from the full cache, recall."""

from __future__ import annotations

from dataclasses import dataclass

from kvbench.workloads.source import positive


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How much quality is measured beside every timing.

    Args:
        text_windows: windows of running text; 0 for none.
        context_tokens: tokens of each window that are read and compressed.
        scored_tokens: tokens after them, fed one at a time through the cache.
        recall_samples: samples of each recall task; 0 for none.
        recall_tokens: context tokens of a recall sample.
        pairs: key-value pairs hidden in a context.
        batch_size: rows at once.
    """

    text_windows: int
    context_tokens: int
    scored_tokens: int
    recall_samples: int
    recall_tokens: int
    pairs: int
    batch_size: int

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.text_windows < 0 or self.recall_samples < 0:
            raise ValueError(
                f"quality.text_windows and quality.recall_samples must be 0 (none) or more; got {self.text_windows} "
                f"and {self.recall_samples}."
            )
        positive(
            "quality",
            context_tokens=self.context_tokens,
            scored_tokens=self.scored_tokens,
            recall_tokens=self.recall_tokens,
            pairs=self.pairs,
            batch_size=self.batch_size,
        )
