"""Entries that are written alone, so that each can lie anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.cache.codecs.base import Format, Kept, Packing
from kvbench.cache.codecs.dense import Dense
from kvbench.cache.codecs.packed import PackedFormat
from kvbench.kernels.packed import Form, Kernel, Packed


@dataclass(frozen=True)
class Numbers(Packing):
    """Entries are kept as the model made them.

    Args:
        dtype: of the model.
    """

    dtype: torch.dtype

    tokens = 1

    def kept(self, dim: int) -> tuple[Kept, ...]:
        """Return the numbers."""
        return (Kept(tokens=1, width=dim, dtype=self.dtype),)

    def encode(self, entries: Tensor) -> Sequence[Tensor]:
        """Return entries [B, G, T, D] as they are."""
        return (entries,)

    def run(self, kept: Sequence[Tensor], dim: int, kernel: Kernel) -> Packed:
        """Return entries as attention reads them."""
        levels, bits = str(self.dtype).removeprefix("torch."), 8 * self.dtype.itemsize
        form = Form(dim=dim, bits=bits, tokens=1, channels=dim, symmetric=True, levels=levels)  # type: ignore[arg-type]
        codes = kept[0].view(torch.uint8)
        return Packed(form, codes, codes.new_empty((*codes.shape[:3], 0), dtype=torch.float16), None, kernel)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return nothing."""
        return ()


def are_alone(how: Format) -> bool:
    """Return whether each entry is written alone, wherever it lies."""
    is_packed = isinstance(how, PackedFormat) and how.rule.residual == 0 and how.quantiser.tokens == 1
    return is_packed or isinstance(how, Dense)


def packing_of(how: Format, dtype: torch.dtype) -> Packing:
    """Return how each entry is written, where each is written alone."""
    if isinstance(how, Dense):
        return Numbers(dtype)
    assert isinstance(how, PackedFormat), "refused before"
    return how.quantiser


def kernel_of(how: Format, like: Tensor) -> Kernel | None:
    """Return what reads packed entries shaped as `like`; None where none are packed."""
    return how.rule.kernel_on(like.device, like.dtype) if isinstance(how, PackedFormat) else None
