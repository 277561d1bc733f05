"""Several layers read the keys and values of the first of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from kvbench.models.sharing import sharing
from kvbench.models.view import view_of
from kvbench.strategies.transform.base import Transform, with_modules
from kvbench.types import ModelView


@dataclass(frozen=True, kw_only=True)
class CrossLayer(Transform):
    """The first layer of each group makes keys and values, the others read them and lose what made their own.

    Source: Brandon et al. (CLA), arXiv:2405.12981, sec. 2.2; not trained afterwards.

    Args:
        factor: layers of a group; the last group may have fewer.
    """

    is_exact: ClassVar[bool] = False
    changes_heads: ClassVar[bool] = True

    factor: int

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if self.factor < 1:
            raise ValueError(f"strategy.transform.factor must be at least 1; got {self.factor}.")

    def unsupported(self, view: ModelView) -> str | None:
        """Return why the layers of a model cannot share, or None."""
        if any(layer.rotary is None or layer.window > 0 for layer in view.layers):
            return (
                "strategy/transform=cla needs rotary positions and layers without a window, which this model has not; "
                "use strategy/transform=gqa"
            )
        return None

    def shapes(self, view: ModelView) -> ModelView:
        """Return the view with layers that store nothing."""
        layers = (
            replace(layer, donor=donor, key_projection=None, value_projection=None)
            if (donor := index // self.factor * self.factor) != index
            else layer
            for index, layer in enumerate(view.layers)
        )
        return replace(view, layers=tuple(layers))

    def view(self, prepared: nn.Module, view: ModelView) -> ModelView:
        """Return what is known of the prepared model."""
        return replace(view_of(prepared), asked=view.asked)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return a model whose layers share keys and values.

        Raises:
            ValueError: as `unsupported` says, or if attention is not of Llama's kind.
        """
        view = view_of(model)
        reason = self.unsupported(view)
        if reason is not None:
            raise ValueError(reason)
        changes = sharing(model, self.factor)
        if len(changes) != len(view.layers):
            raise ValueError(
                f"strategy/transform=cla needs attention of Llama's kind, which {type(model).__name__} has not; use "
                f"strategy/transform=gqa."
            )
        return with_modules(model, changes)
