"""When entries leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Trigger(Protocol):
    """When entries leave."""

    @property
    def period(self) -> int:
        """How many entries gather while decoding before as many leave; 0 if none ever do."""


@dataclass(frozen=True, kw_only=True)
class PrefillEnd:
    """Once, when the prompt has been read; decoding then appends without bound."""

    @property
    def period(self) -> int:
        """None leave while decoding."""
        return 0


@dataclass(frozen=True, kw_only=True)
class Every:
    """When the prompt has been read, and again each time so many new tokens are above the budget.

    Args:
        period: tokens; 1 lets one entry leave after every token.
    """

    period: int

    def __post_init__(self) -> None:
        """Refuse periods that mean nothing."""
        if self.period < 1:
            raise ValueError(f"strategy.trigger.period must be at least 1; got {self.period}.")
