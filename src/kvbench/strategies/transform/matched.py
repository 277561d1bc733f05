"""Another network of the same size in place of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from kvbench.strategies.transform.base import Transform
from kvbench.types import ModelView


@dataclass(frozen=True, kw_only=True)
class Matched(Transform):
    """The strategy runs on the network that the model's yaml names under `matched`, which the bench loads.

    Args:
        kind: of network, a key there.
    """

    is_exact: ClassVar[bool] = False

    kind: str

    def changed(self, model: nn.Module, view: ModelView) -> nn.Module:
        """Return the model itself; never called, as `unsupported` has refused it."""
        return model

    def unsupported(self, view: ModelView) -> str | None:
        """Return why no model can be changed so: whoever loads the other one leaves this part out."""
        return (
            f"strategy/transform=matched runs on another network, which cannot be made of this model: kvbench run "
            f"loads the one that model.matched.{self.kind} names; elsewhere choose that model, with "
            f"strategy/transform=none"
        )
