"""Another network of the same size in place of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from kvbench.strategies.transform.base import Transform
from kvbench.types import ModelView


@dataclass(frozen=True, kw_only=True)
class Matched(Transform):
    """The strategy runs on the network that the model's yaml names under `matched`, which the bench loads.

    Args:
        kind: of network.
    """

    is_exact: ClassVar[bool] = False
    changes_heads: ClassVar[bool] = True

    kind: Literal["mamba", "rwkv"]

    def changed(self, model: nn.Module, view: ModelView) -> nn.Module:
        """Return the model itself, which is the matched one already."""
        return model

    def unsupported(self, view: ModelView) -> str | None:
        """Return why this is no matched network, or None."""
        if not view.is_recurrent:
            return (
                f"strategy/transform=matched runs on another network, which cannot be made of this model: kvbench run "
                f"loads the one that model.matched.{self.kind} names; elsewhere set model= to that name"
            )
        return None
