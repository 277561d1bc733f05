"""Part of the budget goes by score and the rest to the newest entries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from torch import Tensor

from kvbench.strategies.selection.selector import Protected


@dataclass(frozen=True, kw_only=True)
class Truncation(Protected):
    """The best scores stay, alone or beside the newest entries.

    Where both would choose the same entry the next best score fills the place, so that the budget is always used up.

    Source: mkurman (fixed-size-kv-cache), README and code.
    Deviates: recent means newest in the text (the code takes the last of an unsorted list of scores, and forgets
        about them while decoding).

    Args:
        truncation: "attention" goes by score alone, "hybrid" by score and recency.
        split: fraction of the budget that goes by score in a hybrid, rounded down.
        keeps_newest: whether the newest entry stays while decoding, whatever its score.
    """

    truncation: Literal["attention", "hybrid"]
    split: float
    keeps_newest: bool

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        super().__post_init__()
        if self.truncation not in ("attention", "hybrid"):
            raise ValueError(f"strategy.selector.truncation must be attention or hybrid; got {self.truncation!r}.")
        if not 0 <= self.split <= 1:
            raise ValueError(f"strategy.selector.split must be between 0 and 1; got {self.split}.")

    def recent(self, budget: int) -> int:
        """Return how many of the newest entries a budget protects while decoding."""
        by_score = int(Fraction(str(self.split)) * budget) if self.truncation == "hybrid" else budget
        return max(super().recent(budget), budget - by_score, int(self.keeps_newest))

    def priority(self, score: Tensor, position: Tensor, budget: Sequence[int]) -> Tensor:
        """Return the scores [B, S, n]; the newest entry is protected while decoding only."""
        if not self.keeps_newest:
            return super().priority(score, position, budget)
        return replace(self, keeps_newest=False).priority(score, position, budget)
