"""Entries packed with as many bits as each layer needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from kvbench.cache.codecs.bits import BITS, KIND, bits_of_layers
from kvbench.cache.codecs.packed import PackedCodec
from kvbench.kernels.packed import Kernel
from kvbench.types import ModelView


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """Keys and values whose rounding is felt get more bits than those where it is not.

    Source: Li et al. (KVTuner), arXiv:2502.04420.
    Deviates: a layer's error is the divergence of the model's predictions when it alone is rounded; errors are added
        up, and the best bits for their sum found exactly. The authors measure attention outputs, leave out pairs of
        bits that others dominate, treat like layers as one, and search the loss of what is left.

    Args:
        bits: of a number on average, over layers, keys and values; metadata comes on top.
        like: how entries are packed, whatever their bits.
        errors: file or folder of errors by bits; "" for where `kvbench calibrate bits` leaves them.
    """

    calibration: ClassVar[str] = KIND
    is_exact: ClassVar[bool] = False
    joins_heads: ClassVar[bool] = False
    joins_slots: ClassVar[bool] = False
    data_dependent: ClassVar[bool] = False
    takes_pieces: ClassVar[bool] = True

    bits: float
    like: PackedCodec
    errors: str

    def __post_init__(self) -> None:
        """Refuse bits that no layer can have, and packing that has no bits to choose."""
        if not BITS[0] <= self.bits <= BITS[-1]:
            raise ValueError(f"strategy.codec.bits must be between {BITS[0]} and {BITS[-1]}; got {self.bits}.")
        sides = (self.like.key_quantiser, self.like.value_quantiser) if isinstance(self.like, PackedCodec) else ()
        if not sides or any(side.levels != "integers" for side in sides):
            raise ValueError(
                "strategy/codec@strategy.codec.like must round to integers; use kivi4, kivi2, int4 or int8."
            )

    @property
    def writes_each_token_alone(self) -> bool:
        """Whether an entry can be written, and overwritten, without any other."""
        return self.like.writes_each_token_alone

    @property
    def flush_tokens(self) -> int:
        """Tokens that are packed at once while decoding."""
        return self.like.flush_tokens

    def of_layer(self, view: ModelView, layer: int) -> PackedCodec:
        """Return the codec of a layer, with its bits."""
        keys, values = self._chosen(view)[layer]
        return replace(
            self.like,
            key_quantiser=replace(self.like.key_quantiser, bits=keys),
            value_quantiser=replace(self.like.value_quantiser, bits=values),
        )

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> Kernel:
        """Return what reads packed entries of a model with this dtype on this device."""
        return self.like.kernel_on(device, dtype)

    def unsupported(self, view: ModelView) -> str | None:
        """Return why the kernel cannot be had, or why there are no errors, with the command for them; or None."""
        try:
            self._chosen(view)
        except ValueError as error:
            return str(error)
        return self.like.unsupported(view)

    def _chosen(self, view: ModelView) -> tuple[tuple[int, int], ...]:
        return bits_of_layers(view, self.errors, self.like.key_quantiser.along, self.bits)
