"""Small dataclasses that stand in for the real ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

HERE = "tests.config.parts"


class Shape(Protocol):
    name: str

    def area(self) -> float:
        """Return how much of the paper it covers."""


@dataclass(frozen=True, kw_only=True)
class Circle:
    radius: float

    def __post_init__(self) -> None:
        if self.radius <= 0:
            raise ValueError(f"a radius is above 0; got {self.radius}.")

    def area(self) -> float:
        return 3.0 * self.radius**2


@dataclass(frozen=True, kw_only=True)
class Line:
    length: float

    def aera(self) -> float:
        return 0.0


@dataclass(frozen=True, kw_only=True)
class Pen:
    colour: Literal["black", "blue"]
    widths: tuple[int, ...]
    label: str | None
    extra: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    shape: Shape
    pen: Pen
    copies: int
    is_signed: bool
    title: str


def node() -> dict[str, Any]:
    """Return what a right yaml holds."""
    return {
        "_target_": f"{HERE}.Drawing",
        "shape": {"_target_": f"{HERE}.Circle", "radius": 2},
        "pen": {"colour": "blue", "widths": [1, 2], "label": None, "extra": {"depth": {"a": 1}}},
        "copies": 3,
        "is_signed": True,
        "title": "one",
    }
