"""What codecs have in common that write entries in coordinates of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from kvbench.cache.codecs.base import Codec
from kvbench.cache.codecs.basis import Basis
from kvbench.cache.codecs.latent import LatentCodec, LatentFormat
from kvbench.cache.codecs.moments import KIND
from kvbench.types import ModelView


@dataclass(frozen=True, kw_only=True)
class Projected(ABC):
    """Entries become coordinates, and another codec writes these.

    Args:
        num_sink: first tokens, which stay as the model made them.
        window: latest tokens, which stay so until they are no longer among them; 0 for none.
        latent: how coordinates are written; packs each token alone.
    """

    is_exact: ClassVar[bool] = False
    data_dependent: ClassVar[bool] = False
    flush_tokens: ClassVar[int] = 1

    num_sink: int
    window: int
    latent: Codec

    def __post_init__(self) -> None:
        """Refuse exact tokens and latents that cannot be."""
        if self.num_sink < 0 or self.window < 0:
            raise ValueError(
                f"strategy.codec.num_sink and strategy.codec.window must be 0 or more; got {self.num_sink} and "
                f"{self.window}."
            )
        if not self.latent.writes_each_token_alone or isinstance(self.latent, Projected):
            raise ValueError(
                "strategy/codec@strategy.codec.latent must write each token alone, along directions of no other codec; "
                "use float16, int8, int4 or dense."
            )

    @property
    def writes_each_token_alone(self) -> bool:
        """Whether an entry can be written, and overwritten, without any other: where none is exact."""
        return self.num_sink == self.window == 0

    @property
    def takes_pieces(self) -> bool:
        """Whether entries may be written piece by piece: where none waits in a window to be written."""
        return self.window == 0 and self.latent.takes_pieces

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
        return LatentCodec(
            keys=LatentFormat(keys, inner.key_format),
            values=inner.value_format if values is None else LatentFormat(values, inner.value_format),
            num_sink=self.num_sink,
            window=self.window,
        )

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return what reads the coordinates of a model with this dtype on this device."""
        return self.latent.kernel_on(device, dtype)

    def unsupported(self, view: ModelView) -> str | None:
        """Return why coordinates of a model cannot be written, or None."""
        return self.latent.unsupported(view)


@dataclass(frozen=True, kw_only=True)
class Measured(Projected):
    """Coordinates that follow from what was measured on a model.

    Args:
        moments: file or folder; "" for where `kvbench calibrate moments` leaves them.
    """

    calibration: ClassVar[str] = KIND

    moments: str

    def unsupported(self, view: ModelView) -> str | None:
        """Return why there are no coordinates for a model, with the command that finds them, or None."""
        try:
            self.bases(view, 0)
        except ValueError as error:
            return str(error)
        return super().unsupported(view)
