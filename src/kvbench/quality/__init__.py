"""What a strategy costs in meaning: likelihood, divergence from the full cache, recall."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kvbench.workloads.source import positive

ATTENTION_WINDOWS: Final = 4  # short texts in which lost attention is measured
ATTENTION_STEPS: Final = 16  # their last tokens, fed one at a time


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
        attention_tokens: tokens of a short text, of which the last few are fed one at a time to see how much attention
            goes to what has left; 0 for none.
        batch_size: rows at once.
    """

    text_windows: int
    context_tokens: int
    scored_tokens: int
    recall_samples: int
    recall_tokens: int
    pairs: int
    attention_tokens: int
    batch_size: int

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.text_windows < 0 or self.recall_samples < 0:
            raise ValueError(
                f"quality.text_windows and quality.recall_samples must be 0 (none) or more; got {self.text_windows} "
                f"and {self.recall_samples}."
            )
        if self.attention_tokens != 0 and self.attention_tokens <= ATTENTION_STEPS:
            raise ValueError(
                f"quality.attention_tokens must be 0 (none) or more than the {ATTENTION_STEPS} that are decoded; got "
                f"{self.attention_tokens}."
            )
        positive(
            "quality",
            context_tokens=self.context_tokens,
            scored_tokens=self.scored_tokens,
            recall_tokens=self.recall_tokens,
            pairs=self.pairs,
            batch_size=self.batch_size,
        )

    @property
    def longest_window(self) -> int:
        """Tokens of the longest window of text that is read; 0 where none is."""
        scored = self.context_tokens + 1 + self.scored_tokens if self.text_windows > 0 else 0
        return max(scored, self.attention_tokens)
