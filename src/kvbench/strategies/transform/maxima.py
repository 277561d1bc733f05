"""How large each channel that enters a block's linear layers gets, measured once by `kvbench calibrate smooth`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from kvbench import calibrated
from kvbench.calibrated import Calibrated, command
from kvbench.types import ModelView

KIND = "smooth"


@dataclass(frozen=True, kw_only=True)
class ChannelMaxima(Calibrated):
    """The largest magnitude of each channel behind each norm.

    Args:
        maxima: per norm, in the order of the model's norms, per channel.
    """

    holds: ClassVar[str] = "channel maxima"
    lacks: ClassVar[str] = "the channels of this model have no maxima"
    key: ClassVar[str] = "strategy.transform.maxima"

    maxima: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        """Refuse what are no magnitudes."""
        values = [value for row in self.maxima for value in row]
        if not values or not all(math.isfinite(value) and value >= 0 for value in values):
            raise ValueError("channel maxima must be numbers of at least 0.")

    @classmethod
    def parsed(cls, read: dict[str, Any]) -> Self:
        """Return what a file holds."""
        return cls(maxima=tuple(tuple(map(float, row)) for row in read.pop("maxima")), **read)

    def misfit(self, kind: str, view: ModelView) -> str | None:
        """Return why norms differ from the model's, or None."""
        want, got = [norm.width for norm in view.norms], [len(row) for row in self.maxima]
        if got == want:
            return None
        return (
            f"has maxima for {len(got)} norms of widths {sorted(set(got))}, this model has {len(want)} of "
            f"{sorted(set(want))}. Run: {command(kind, view)}"
        )

    def drawn(self) -> list[str]:
        """Return one line per norm."""
        return [f"norm {at:3} largest {max(row):10.3f} smallest {min(row):10.3f}" for at, row in enumerate(self.maxima)]


def find(where: str, view: ModelView) -> ChannelMaxima | None:
    """Return the maxima of a model, or None for a model without weights.

    Args:
        where: file, or folder of files; "" for the cache folder and what is shipped.
        view: of the model.

    Raises:
        ValueError: if there are none, with the command that makes them, or if they are another model's.
    """
    return calibrated.find(ChannelMaxima, where, view, kind=KIND)
