"""Several layers read the keys and values of the first of them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from kvbench.models.sharing import donors, let_stop, sharing
from kvbench.strategies.transform.base import Transform, with_config, with_modules
from kvbench.types import ModelView


@dataclass(frozen=True, kw_only=True)
class Sharing(Transform):
    """The first layer of each group makes keys and values, the others read them and lose what made their own."""

    is_exact: ClassVar[bool] = False
    changes_heads: ClassVar[bool] = True
    name: ClassVar[str]

    @abstractmethod
    def said(self, layers: int) -> tuple[int, list[int]]:
        """Return how many layers without a window share, and what each layer sees, 0 for everything."""

    def unsupported(self, view: ModelView) -> str | None:
        """Return why the layers of a model cannot share, or None."""
        windows = [layer.window for layer in view.layers]
        is_prepared = windows == self.said(len(windows))[1]
        if any(layer.rotary is None for layer in view.layers) or (any(windows) and not is_prepared):
            return (
                f"strategy/transform={self.name} needs rotary positions and layers without a window, which this model "
                f"has not; use strategy/transform=gqa"
            )
        return None

    def shapes(self, view: ModelView) -> ModelView:
        """Return the view with windows, and with layers that store nothing."""
        factor, windows = self.said(len(view.layers))
        layers = (
            replace(layer, window=window)
            if donor is None
            else replace(layer, donor=donor, key_projection=None, value_projection=None)
            for layer, window, donor in zip(view.layers, windows, donors(factor, windows), strict=True)
        )
        return replace(view, layers=tuple(layers))

    def changed(self, model: nn.Module, view: ModelView) -> nn.Module:
        """Return a model whose layers share keys and values.

        Raises:
            ValueError: if attention is not of Llama's kind.
        """
        factor, windows = self.said(len(view.layers))
        changes = sharing(model, factor, windows)
        if len(changes) != len(view.layers):
            raise ValueError(
                f"strategy/transform={self.name} needs attention of Llama's kind, which {type(model).__name__} has "
                f"not; use strategy/transform=gqa."
            )
        kinds = ["sliding_attention" if window > 0 else "full_attention" for window in windows]
        said = {"layer_types": kinds, "sliding_window": max(windows)} if any(windows) else {}
        made = with_config(with_modules(model, changes), model, **said)
        let_stop(made)
        return made


@dataclass(frozen=True, kw_only=True)
class CrossLayer(Sharing):
    """Neighbouring layers share, with no training afterwards.

    Source: Brandon et al. (CLA), arXiv:2405.12981, sec. 2.2.

    Args:
        factor: layers of a group; the last group may have fewer.
    """

    name: ClassVar[str] = "cla"

    factor: int

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if self.factor < 1:
            raise ValueError(f"strategy.transform.factor must be at least 1; got {self.factor}.")

    def said(self, layers: int) -> tuple[int, list[int]]:
        """Return how many layers share; none has a window."""
        return self.factor, [0] * layers


@dataclass(frozen=True, kw_only=True)
class Yoco(Sharing):
    """The lower half of the layers sees a window, the upper half shares, with no training afterwards.

    Source: Sun et al. (YOCO), arXiv:2405.05254, sec. 2.

    Args:
        window: tokens that layers of the lower half see, each its own included.
    """

    name: ClassVar[str] = "yoco"

    window: int

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if self.window < 1:
            raise ValueError(f"strategy.transform.window must be at least 1; got {self.window}.")

    def said(self, layers: int) -> tuple[int, list[int]]:
        """Return that all layers of the upper half share, and the windows of the others."""
        upper = layers - layers // 2
        return upper, [self.window] * (layers - upper) + [0] * upper
