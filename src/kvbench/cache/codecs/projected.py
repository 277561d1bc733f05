"""What codecs have in common that write entries in coordinates of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from kvbench.cache.codecs.base import Codec
from kvbench.cache.codecs.basis import Basis
from kvbench.cache.codecs.latent import LatentCodec, LatentFormat
from kvbench.types import ModelView


@dataclass(frozen=True, kw_only=True)
class Projected(ABC):
    """Entries become coordinates, and another codec writes these.

    Args:
        latent: how coordinates are written; packs each token alone.
    """

    is_exact: ClassVar[bool] = False
    data_dependent: ClassVar[bool] = False
    writes_each_token_alone: ClassVar[bool] = True
    flush_tokens: ClassVar[int] = 1

    latent: Codec

    def __post_init__(self) -> None:
        """Refuse latents that cannot be."""
        if not self.latent.writes_each_token_alone or isinstance(self.latent, Projected):
            raise ValueError(
                "strategy/codec@strategy.codec.latent must write each token alone, along directions of no other codec; "
                "use float16, int8, int4 or dense."
            )

    @property
    @abstractmethod
    def joins_heads(self) -> bool:
        """Whether heads of a token share coordinates."""

    @property
    def joins_slots(self) -> bool:
        """Whether the heads of a slot are written at once: where they share coordinates."""
        return self.joins_heads

    @abstractmethod
    def bases(self, view: ModelView, layer: int) -> tuple[Basis, Basis | None]:
        """Return the coordinates of the keys and of the values of a layer; None for values as they are."""

    def of_layer(self, view: ModelView, layer: int) -> LatentCodec:
        """Return the codec of a layer, with its coordinates."""
        (keys, values), inner = self.bases(view, layer), self.latent.of_layer(view, layer)
        value_format = inner.value_format if values is None else LatentFormat(values, inner.value_format)
        return LatentCodec(key_format=LatentFormat(keys, inner.key_format), value_format=value_format)

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return what reads the coordinates of a model with this dtype on this device."""
        return self.latent.kernel_on(device, dtype)

    def unsupported(self, view: ModelView) -> str | None:
        """Return why coordinates of a model cannot be written, or None."""
        return self.latent.unsupported(view)
