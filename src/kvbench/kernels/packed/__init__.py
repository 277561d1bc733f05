"""Attention on packed entries: a row is unpacked where it is used, and a dense copy of a cache never exists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

Kernel = Literal["native", "reference"]
KERNELS: tuple[Kernel, ...] = ("native", "reference")


@dataclass(frozen=True, kw_only=True)
class Form:
    """How rows of numbers are packed.

    A number is its code, or what the code stands for, times a scale, plus the least one.

    Args:
        dim: numbers of a row.
        bits: of a code.
        tokens: neighbouring rows whose numbers of one channel share a scale; 1 where each row has its own scales.
        channels: neighbouring numbers of a row that share a scale; 1 where each channel has its own.
        symmetric: whether codes are as often below 0 as above it, so that there is no least number to keep.
        is_float: whether codes are floating point numbers: e4m3 with 8 bits; with 16 they are the numbers, unscaled.
    """

    dim: int
    bits: int
    tokens: int
    channels: int
    symmetric: bool
    is_float: bool

    @property
    def scales(self) -> int:
        """Scales of a row, or of so many rows as share them."""
        return 0 if self.bits == 16 else -(-self.dim // self.channels)


@dataclass(frozen=True)
class Packed:
    """A run of packed rows.

    Args:
        form: how they are packed.
        codes: uint8 [B, G, m, w].
        scale: float16 [B, G, M, n], one row for `form.tokens` rows of codes.
        low: the least numbers, as the scales; None where the form is symmetric.
        kernel: what reads them.
    """

    form: Form
    codes: Tensor
    scale: Tensor
    low: Tensor | None
    kernel: Kernel

    def dense(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Return rows start .. stop as numbers [B, G, stop - start, D]."""
        from kvbench.kernels.packed import reference

        return reference.dense(self, start, stop, dtype)


@dataclass(frozen=True)
class Rows:
    """Keys or values of which some are packed, in the order of their slots.

    Args:
        parts: runs of entries, packed or as they are [B, G, m, D].
        dtype: of the model.
    """

    parts: Sequence[Tensor | Packed]
    dtype: torch.dtype

    outlier_entries: ClassVar[float] = 0.0
    sink_entries: ClassVar[int] = 0

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Entries of each part."""
        return tuple((part if isinstance(part, Tensor) else part.codes).shape[2] for part in self.parts)

    @property
    def exact(self) -> int:
        """Entries that are not packed."""
        return sum(part.shape[2] for part in self.parts if isinstance(part, Tensor))

    @property
    def groups(self) -> int:
        """KV heads."""
        first = self.parts[0]
        return (first if isinstance(first, Tensor) else first.codes).shape[1]

    def numbers(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Return entries start .. stop as numbers [B, G, stop - start, D]."""
        found: list[Tensor] = []
        first = 0
        for part, length in zip(self.parts, self.lengths, strict=True):
            low, high = max(start - first, 0), min(stop - first, length)
            first += length
            if low >= high:
                continue
            found.append(part[:, :, low:high].to(dtype) if isinstance(part, Tensor) else part.dense(low, high, dtype))
        return found[0] if len(found) == 1 else torch.cat(found, dim=2)

    def logits(self, rows: Tensor) -> Tensor:
        """Return the products of rows [B, G, g, D] with every entry [B, G, g, m], float32 or wider."""
        wide = torch.promote_types(rows.dtype, torch.float32)
        out = rows.new_empty((*rows.shape[:3], sum(self.lengths)), dtype=wide)
        start = 0
        for part, length in zip(self.parts, self.lengths, strict=True):
            here = out.narrow(3, start, length)
            if isinstance(part, Tensor):
                here.copy_(torch.matmul(rows, part.transpose(-1, -2)))
            elif part.kernel == "native":
                from kvbench.kernels.packed import native

                native.logits(rows.to(wide), part, here)
            else:
                from kvbench.kernels.packed import reference

                reference.logits(rows.to(wide), part, here)
            start += length
        return out

    def weighted(self, weights: Tensor) -> Tensor:
        """Return the sum of the entries by weights [B, G, g, m], as [B, G, g, D]."""
        out: Tensor | None = None
        start = 0
        for part, length in zip(self.parts, self.lengths, strict=True):
            mine = weights.narrow(3, start, length)
            if isinstance(part, Tensor):
                summed = torch.matmul(mine.to(part.dtype), part)
            elif part.kernel == "native":
                from kvbench.kernels.packed import native

                summed = native.weighted(mine, part)
            else:
                from kvbench.kernels.packed import reference

                summed = reference.weighted(mine, part)
            out = summed if out is None else out + summed
            start += length
        assert out is not None
        return out.to(self.dtype)


def why_not(kernel: Kernel, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why a kernel cannot read entries of a model with this dtype on this device, or None."""
    if kernel == "reference":
        return None
    from kvbench.kernels.packed import native

    return native.why_not(device, dtype)
