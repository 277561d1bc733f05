"""Each layer keeps its own entries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvbench.cache.plan import LayerPlan
from kvbench.types import ModelView


@dataclass(frozen=True, kw_only=True)
class Separate:
    """No layer shares anything."""

    merges: ClassVar[bool] = False
    by_token: ClassVar[bool] = False

    def lower_layers(self, num_layers: int) -> Sequence[int]:
        """Return no pairs."""
        return ()

    def unsupported(self, plans: Sequence[LayerPlan], view: ModelView) -> str | None:
        """Return None: whatever the layers are."""
        return None

    def num_retained(self, length: int) -> int:
        """Never called: no layer has a partner."""
        raise AssertionError

    def merge(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Never called: no layer has a partner."""
        raise AssertionError

    def retain(self, angle: Tensor, position: Tensor, count: int) -> Tensor:
        """Never called: no layer has a partner."""
        raise AssertionError
