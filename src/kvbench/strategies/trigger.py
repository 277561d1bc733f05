"""When entries leave, and when they are packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol


class Trigger(Protocol):
    """When entries leave, and when they are packed."""

    @property
    def period(self) -> int:
        """How many entries gather while decoding before as many leave; 0 if none ever do."""

    @property
    def packs_pieces(self) -> bool:
        """Whether a piece of a prompt is packed before the next one is read."""


@dataclass(frozen=True, kw_only=True)
class PrefillEnd:
    """Once, when the prompt has been read; decoding then appends without bound."""

    packs_pieces: ClassVar[bool] = False

    @property
    def period(self) -> int:
        """None leave while decoding."""
        return 0


@dataclass(frozen=True, kw_only=True)
class EveryChunk:
    """None leave, and a prompt is packed piece by piece, as `engine.prefill_chunk` cuts it.

    A piece attends to those before it as they are packed, and to itself as it is.
    """

    packs_pieces: ClassVar[bool] = True

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

    packs_pieces: ClassVar[bool] = False

    period: int

    def __post_init__(self) -> None:
        """Refuse periods that mean nothing."""
        if self.period < 1:
            raise ValueError(f"strategy.trigger.period must be at least 1; got {self.period}.")
