"""Entries kept as the model made them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.cache.codecs.base import Room
from kvbench.kernels import few_rows
from kvbench.types import ModelView


@dataclass(frozen=True, kw_only=True)
class Dense:
    """Keeps keys and values in the model's dtype: nothing is lost, nothing is packed."""

    is_exact: ClassVar[bool] = True
    writes_each_token_alone: ClassVar[bool] = True
    data_dependent: ClassVar[bool] = False
    takes_pieces: ClassVar[bool] = True
    joins_heads: ClassVar[bool] = False
    joins_slots: ClassVar[bool] = False
    num_sink: ClassVar[int] = 0
    flush_tokens: ClassVar[int] = 1
    fixed_bytes: ClassVar[int] = 0

    @property
    def key_format(self) -> Dense:
        """How keys are written: as values are."""
        return self

    @property
    def value_format(self) -> Dense:
        """How values are written: as keys are."""
        return self

    def of_layer(self, view: ModelView, layer: int) -> Dense:
        """Return the codec itself, or the one whose entries are read by compiled code."""
        shape = view.layers[layer]
        fits = few_rows.fits(shape.key_dim) and few_rows.fits(shape.value_dim)
        return CompiledDense() if view.is_compiled and fits else self

    def of_heads(self, heads: slice) -> Dense:
        """Return the codec itself."""
        return self

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> None:
        """Return None: nothing is packed."""

    def unsupported(self, view: ModelView) -> str | None:
        """Return None: every model can."""
        return None

    def empty(self, like: Tensor, capacity: int) -> DensePayload:
        """Return room for `capacity` entries shaped as `like` [B, G, T, D]."""
        batch, heads, _, dim = like.shape
        return DensePayload(like.new_zeros(batch, heads, capacity, dim))

    def allocated_bytes(self, heads: int, dim: int, capacity: int, dtype: torch.dtype) -> int:
        """Return the bytes of room for so many entries of so many heads."""
        return heads * capacity * dim * dtype.itemsize

    used_bytes = allocated_bytes

    def rooms(self, batch: int, heads: int, dim: int, capacity: int, dtype: torch.dtype) -> list[Room]:
        """Return the one storage."""
        return [Room(batch=batch, entries=capacity, bytes=batch * self.allocated_bytes(heads, dim, capacity, dtype))]


class DensePayload:
    """One tensor [B, G, capacity, D], allocated once."""

    def __init__(self, data: Tensor) -> None:
        self.data = data

    @property
    def capacity(self) -> int:
        """Slots per row and head."""
        return self.data.shape[2]

    def write(self, start: int, entries: Tensor, position: Tensor | int | None = None) -> None:
        """Store entries [B, G, T, D] at slots start .. start + T."""
        self.data.narrow(2, start, entries.shape[2]).copy_(entries)

    def scatter(self, slot: Tensor, entry: Tensor, position: Tensor | int | None = None) -> None:
        """Store one entry [B, G, 1, D] per row and head at its own slot [B, 1 or G], or k of them at [B, 1 or G, k]."""
        at = slot[:, :, None] if slot.dim() == 2 else slot
        self.data.scatter_(2, at[..., None].expand_as(entry), entry)

    def settle(self, position: Tensor) -> None:
        """Do nothing: entries stay as they are."""

    def read(self, stop: int, position: Tensor | None = None) -> Tensor:
        """Return a view of slots 0 .. stop."""
        return self.data if stop == self.data.shape[2] else self.data.narrow(2, 0, stop)

    entries = read

    def appended(self, stop: int) -> list[tuple[Tensor, int]]:
        """Return the one storage, and the slots in use."""
        return [(self.data, stop)]

    def moved(self) -> None:
        """Do nothing: the storage is all there is."""

    def unused_bytes(self) -> int:
        """Return 0: entries need what the closed form says."""
        return 0

    def grow(self, capacity: int, used: int) -> None:
        """Move the first `used` slots to storage for `capacity`; the old storage is freed."""
        wider = self.data.new_zeros(*self.data.shape[:2], capacity, self.data.shape[3])
        wider.narrow(2, 0, used).copy_(self.data.narrow(2, 0, used))
        self.data = wider

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held."""
        return (self.data,)

    def snapshot(self) -> None:
        """Return nothing: entries that come later leave the earlier ones alone."""

    def restore(self, snapshot: object) -> None:
        """Do nothing: slots behind the last entry may hold anything."""


class CompiledDense(Dense):
    """Dense entries that attention reads by compiled code."""

    def empty(self, like: Tensor, capacity: int) -> DensePayload:
        """Return room for `capacity` entries shaped as `like` [B, G, T, D]."""
        return _CompiledPayload(super().empty(like, capacity).data)


class _CompiledPayload(DensePayload):
    def __init__(self, data: Tensor) -> None:
        super().__init__(data)
        self.moved()

    def moved(self) -> None:
        """Read entries from where they are now."""
        self._matrix = few_rows.Matrix(self.data)

    def grow(self, capacity: int, used: int) -> None:
        """Move the first `used` slots to storage for `capacity`; the old storage is freed."""
        super().grow(capacity, used)
        self.moved()

    def entries(self, stop: int, position: Tensor | None = None) -> few_rows.Entries:  # type: ignore[override]
        """Return slots 0 .. stop, to be read where they lie."""
        return few_rows.Entries(self._matrix, stop)
