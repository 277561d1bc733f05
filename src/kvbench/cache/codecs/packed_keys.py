"""What codecs have in common that pack keys in a way of their own, and values as numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from kvbench.cache.codecs.base import Packing
from kvbench.cache.codecs.packed import PackedFormat, check_residual
from kvbench.cache.codecs.quantiser import Quantiser
from kvbench.cache.codecs.sides import LayerSides
from kvbench.kernels.packed import Kernel
from kvbench.types import LayerShape, ModelView


@dataclass(frozen=True, kw_only=True)
class PackedKeys(ABC):
    """Keys gather and are packed all at once, values are rounded when they are no longer among the latest.

    What is packed is read in plain torch.

    Args:
        group: neighbouring tokens whose keys are packed together.
        value_quantiser: how values become codes.
        residual: tokens: so many keys gather, and so many values are exact.
    """

    is_exact: ClassVar[bool] = False
    data_dependent: ClassVar[bool] = False
    takes_pieces: ClassVar[bool] = True
    joins_heads: ClassVar[bool] = False
    joins_slots: ClassVar[bool] = False
    writes_each_token_alone: ClassVar[bool] = False

    group: int
    value_quantiser: Quantiser
    residual: int

    def __post_init__(self) -> None:
        """Refuse groups that mean nothing, and residuals that they do not divide."""
        if self.group < 2:
            raise ValueError(f"strategy.codec.group must be at least 2 tokens; got {self.group}.")
        check_residual(self.residual, max(self.group, self.value_quantiser.tokens))

    @property
    def flush_tokens(self) -> int:
        """Tokens that are packed at once while decoding."""
        return self.residual

    @abstractmethod
    def keys(self, view: ModelView, layer: int) -> Packing:
        """Return how the keys of a layer are packed."""

    @abstractmethod
    def why_not(self, shape: LayerShape) -> str | None:
        """Return why the keys of a layer cannot be packed, or None."""

    def of_layer(self, view: ModelView, layer: int) -> LayerSides:
        """Return the codec of a layer."""
        keys = self.keys(view, layer)
        return LayerSides(
            key_format=PackedFormat(quantiser=keys, rule=self),
            value_format=PackedFormat(quantiser=self.value_quantiser, rule=self),
            writes_each_token_alone=self.writes_each_token_alone,
            flush_tokens=self.flush_tokens,
            num_sink=0,
            fixed_bytes=sum(t.nbytes for t in keys.tensors()),
        )

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> Kernel:
        """Return what reads packed entries of a model, whichever it is."""
        return "reference"

    def unsupported(self, view: ModelView) -> str | None:
        """Return why the keys of some layer cannot be packed, or None."""
        return next((reason for shape in view.layers if (reason := self.why_not(shape)) is not None), None)
