"""When entries leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol


class Trigger(Protocol):
    """When entries leave."""

    every_step: ClassVar[bool]


@dataclass(frozen=True, kw_only=True)
class PrefillEnd:
    """Once, when the prompt has been read; decoding then appends without bound."""

    every_step: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class EveryStep:
    """When the prompt has been read, and again after every new token."""

    every_step: ClassVar[bool] = True
