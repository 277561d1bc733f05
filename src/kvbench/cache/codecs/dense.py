"""Entries kept as the model made them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor


class Payload(Protocol):
    """Storage for the keys or the values of one layer: slots [B, G, capacity] of one entry each."""

    capacity: int

    def write(self, start: int, entries: Tensor) -> None:
        """Store entries [B, G, T, D] at slots start .. start + T."""

    def scatter(self, slot: Tensor, entry: Tensor) -> None:
        """Store one entry [B, G, 1, D] per row and head at its own slot [B, 1 or G], or k of them at [B, 1 or G, k]."""

    def read(self, stop: int) -> Tensor:
        """Return the entries of slots 0 .. stop as [B, G, stop, D]."""

    def grow(self, capacity: int, used: int) -> None:
        """Move the first `used` slots to storage for `capacity`."""

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held."""


class Codec(Protocol):
    """Makes payloads and says how large they are."""

    writes_each_token_alone: ClassVar[bool]

    def empty(self, like: Tensor, capacity: int) -> Payload:
        """Return room for `capacity` entries shaped as `like` [B, G, T, D]."""

    def entry_bytes(self, dim: int, dtype: torch.dtype) -> int:
        """Return the bytes of one stored entry of one head."""


@dataclass(frozen=True, kw_only=True)
class Dense:
    """Keeps keys and values in the model's dtype: nothing is lost, nothing is packed."""

    writes_each_token_alone: ClassVar[bool] = True

    def empty(self, like: Tensor, capacity: int) -> DensePayload:
        """Return room for `capacity` entries shaped as `like` [B, G, T, D]."""
        batch, heads, _, dim = like.shape
        return DensePayload(like.new_zeros(batch, heads, capacity, dim))

    def entry_bytes(self, dim: int, dtype: torch.dtype) -> int:
        """Return the bytes of one stored entry of one head."""
        return dim * dtype.itemsize


class DensePayload:
    """One tensor [B, G, capacity, D], allocated once."""

    def __init__(self, data: Tensor) -> None:
        self.data = data

    @property
    def capacity(self) -> int:
        """Slots per row and head."""
        return self.data.shape[2]

    def write(self, start: int, entries: Tensor) -> None:
        """Store entries [B, G, T, D] at slots start .. start + T."""
        self.data.narrow(2, start, entries.shape[2]).copy_(entries)

    def scatter(self, slot: Tensor, entry: Tensor) -> None:
        """Store one entry [B, G, 1, D] per row and head at its own slot [B, 1 or G], or k of them at [B, 1 or G, k]."""
        at = slot[:, :, None] if slot.dim() == 2 else slot
        self.data.scatter_(2, at[..., None].expand_as(entry), entry)

    def read(self, stop: int) -> Tensor:
        """Return a view of slots 0 .. stop."""
        return self.data if stop == self.data.shape[2] else self.data.narrow(2, 0, stop)

    def grow(self, capacity: int, used: int) -> None:
        """Move the first `used` slots to storage for `capacity`; the old storage is freed."""
        wider = self.data.new_zeros(*self.data.shape[:2], capacity, self.data.shape[3])
        wider.narrow(2, 0, used).copy_(self.data.narrow(2, 0, used))
        self.data = wider

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held."""
        return (self.data,)
