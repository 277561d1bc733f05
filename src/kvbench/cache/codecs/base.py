"""What a layout keeps its keys and values in, and what a codec must say of itself."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from kvbench.kernels.packed import Rows


class Payload(Protocol):
    """Storage for the keys or the values of one layer: slots [B, G, capacity] of one entry each."""

    @property
    def capacity(self) -> int:
        """Slots per row and head."""

    def write(self, start: int, entries: Tensor) -> None:
        """Store entries [B, G, T, D] at slots start .. start + T."""

    def scatter(self, slot: Tensor, entry: Tensor) -> None:
        """Store one entry [B, G, 1, D] per row and head at its own slot [B, 1 or G], or k of them at [B, 1 or G, k]."""

    def settle(self) -> None:
        """Pack what has to be packed before the next entry comes; attention to the newest entry is done."""

    def entries(self, stop: int) -> Tensor | Rows:
        """Return what attention reads of slots 0 .. stop: a view [B, G, stop, D], or rows that are unpacked in use."""

    def read(self, stop: int) -> Tensor:
        """Return the entries of slots 0 .. stop as [B, G, stop, D]; a copy where they are packed."""

    def grow(self, capacity: int, used: int) -> None:
        """Move the first `used` slots to storage for `capacity`."""

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held."""

    def snapshot(self) -> object:
        """Return what `restore` needs to take back entries appended later."""

    def restore(self, snapshot: object) -> None:
        """Go back to a snapshot, in the same storage."""


class Format(Protocol):
    """How the keys, or the values, of a layer are written."""

    def empty(self, like: Tensor, capacity: int) -> Payload:
        """Return room for `capacity` entries shaped as `like` [B, G, T, D]."""

    def allocated_bytes(self, dim: int, capacity: int, dtype: torch.dtype) -> int:
        """Return the bytes of room for so many entries of one head, metadata included."""

    def used_bytes(self, dim: int, entries: int, dtype: torch.dtype) -> int:
        """Return the bytes of so many entries of one head, metadata included, once they have settled."""


class Codec(Protocol):
    """Makes payloads and says how large they are."""

    @property
    def is_exact(self) -> bool:
        """Whether what is read is what was written."""

    @property
    def writes_each_token_alone(self) -> bool:
        """Whether an entry can be written, and overwritten, without any other."""

    @property
    def flush_tokens(self) -> int:
        """Tokens that are packed at once while decoding."""

    @property
    def key_format(self) -> Format:
        """How keys are written."""

    @property
    def value_format(self) -> Format:
        """How values are written."""

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return what reads packed entries of a model with this dtype on this device; None where none are packed."""

    def unsupported(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return why entries of a model with this dtype on this device cannot be written or read, or None."""
