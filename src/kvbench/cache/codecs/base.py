"""What a layout keeps its keys and values in, and what a codec must say of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from kvbench.kernels.attend import Entries
from kvbench.kernels.packed import Kernel, Run
from kvbench.types import ModelView


class Payload(Protocol):
    """Storage for the keys or the values of one layer: slots [B, G, capacity] of one entry each.

    Keys that are not written as the model rotated them need positions: those of what is written [B, 1 or G, T], or one
    number, and those of all slots [B, 1 or G, m].
    """

    @property
    def capacity(self) -> int:
        """Slots per row and head."""

    def write(self, start: int, entries: Tensor, position: Tensor | int | None = None) -> None:
        """Store entries [B, G, T, D] at slots start .. start + T."""

    def scatter(self, slot: Tensor, entry: Tensor, position: Tensor | int | None = None) -> None:
        """Store one entry [B, G, 1, D] per row and head at its own slot [B, 1 or G], or k of them at [B, 1 or G, k]."""

    def settle(self, position: Tensor) -> None:
        """Pack what has to be packed before the next entry comes; attention to the newest entry is done."""

    def entries(self, stop: int, position: Tensor) -> Tensor | Entries:
        """Return what attention reads of slots 0 .. stop: a view [B, G, stop, D], or rows that are unpacked in use."""

    def read(self, stop: int, position: Tensor | None = None) -> Tensor:
        """Return the entries of slots 0 .. stop as [B, G, stop, D]; a copy where they are packed."""

    def unused_bytes(self) -> int:
        """Return the bytes that the closed form counts as used and that these entries did not need."""

    def grow(self, capacity: int, used: int) -> None:
        """Move the first `used` slots to storage for `capacity`."""

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held."""

    def snapshot(self) -> object:
        """Return what `restore` needs to take back entries appended later."""

    def restore(self, snapshot: object) -> None:
        """Go back to a snapshot, in the same storage."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One of the things that are kept of packed entries.

    Args:
        tokens: neighbouring ones that share a row of it.
        width: numbers of a row, for each head.
        dtype: of the numbers.
        joined: whether all heads share a row.
    """

    tokens: int
    width: int
    dtype: torch.dtype
    joined: bool = False

    def rows(self, heads: int, entries: int) -> tuple[int, int, int]:
        """Return how many sets of rows there are of so many entries of so many heads, how many rows, and numbers."""
        count = entries // self.tokens
        return (1, count, heads * self.width) if self.joined else (heads, count, self.width)

    def bytes(self, entries: int) -> int:
        """Return the bytes of so many entries of one head, a multiple of `tokens`."""
        return entries // self.tokens * self.width * self.dtype.itemsize


class Packing(ABC):
    """How a run of entries is packed, once and for good."""

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Tokens that are packed together; 1 where each is packed alone."""

    @abstractmethod
    def kept(self, dim: int) -> tuple[Kept, ...]:
        """Return what is kept of entries with so many numbers."""

    @abstractmethod
    def encode(self, entries: Tensor) -> Sequence[Tensor | None]:
        """Return what is kept of entries [B, G, T, D], in this order, but for None; T is a multiple of `tokens`."""

    @abstractmethod
    def run(self, kept: Sequence[Tensor], dim: int, kernel: Kernel) -> Run:
        """Return entries with so many numbers as attention reads them, of what is kept."""

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """Return what entries are packed with, which all caches of a model share."""

    def write(self, kept: Sequence[Tensor], run: Run, at: int | Tensor, entries: Tensor) -> None:
        """Pack entries where they are kept.

        Args:
            kept: room for what is kept of them.
            run: of that room.
            at: slot of the first one; or each one's own [B, 1 or G, T], where several are packed together those of one
                run that is the same for all rows and heads.
            entries: [B, G, T, D]; T is a multiple of `tokens`.
        """
        packed = (rows for rows in self.encode(entries) if rows is not None)
        for room, rows in zip(kept, packed, strict=True):
            if isinstance(at, Tensor) and self.tokens > 1:
                tokens = entries.shape[2] // rows.shape[2]
                as_bytes(room).index_copy_(2, at[0, 0, ::tokens].div(tokens, rounding_mode="floor"), as_bytes(rows))
            elif isinstance(at, Tensor) and room.shape[:2] == (1, 1):
                as_bytes(room).index_copy_(2, at[0, 0], as_bytes(rows))
            elif isinstance(at, Tensor):
                as_bytes(room).scatter_(2, at[..., None].expand_as(rows), as_bytes(rows))
            else:
                tokens = entries.shape[2] // rows.shape[2]
                room.narrow(2, at // tokens, rows.shape[2]).copy_(rows)


def as_bytes(rows: Tensor) -> Tensor:
    """Return numbers of 8 bits as bytes, which torch scatters."""
    return rows.view(torch.uint8) if rows.dtype.itemsize == 1 else rows


class Format(Protocol):
    """How the keys, or the values, of a layer are written."""

    def empty(self, like: Tensor, capacity: int) -> Payload:
        """Return room for `capacity` entries shaped as `like` [B, G, T, D]."""

    def allocated_bytes(self, heads: int, dim: int, capacity: int, dtype: torch.dtype) -> int:
        """Return the bytes of room for so many entries of so many heads, metadata included."""

    def used_bytes(self, heads: int, dim: int, entries: int, dtype: torch.dtype) -> int:
        """Return the bytes of so many entries of so many heads, metadata included, once they have settled."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """A storage [B, heads, entries, ...] whose rows along dimension 2 never change once they are written.

    Args:
        batch: rows of the batch.
        entries: rows along dimension 2, of one token or of several that are packed together.
        bytes: of all of it.
    """

    batch: int
    entries: int
    bytes: int


@runtime_checkable
class Movable(Protocol):
    """A format whose entries may lie elsewhere between the steps that read them; it makes `Appended` storage."""

    def rooms(self, batch: int, heads: int, dim: int, capacity: int, dtype: torch.dtype) -> list[Room]:
        """Return the storages that room for so many entries is made of, but for those of the latest entries."""


@runtime_checkable
class Appended(Protocol):
    """Storage that grows by what is appended."""

    def appended(self, stop: int) -> list[tuple[Tensor, int]]:
        """Return its `rooms` and how many rows of each are in use, given the slots in use."""

    def moved(self) -> None:
        """Forget where its `rooms` were: they are somewhere else now."""


@runtime_checkable
class QueryDriven(Protocol):
    """A format that depends on the last queries of a prompt; it makes storage that is `Asked`."""

    @property
    def num_queries(self) -> int:
        """Last queries of a prompt that are asked for."""


@runtime_checkable
class SizedByPrompt(Protocol):
    """A format whose bytes depend on how many of the entries came with the prompt."""

    def after(self, prompt: int) -> Format:
        """Return how entries are written behind so many that came with the prompt."""


@runtime_checkable
class Asked(Protocol):
    """Storage that is told the last queries of a prompt before it is written."""

    def ask(self, queries: Tensor) -> None:
        """Note the last queries [B, H, T, D] of the prompt that is written next."""


class LayerCodec(Protocol):
    """How the entries of one layer are written."""

    @property
    def is_exact(self) -> bool:
        """Whether what is read is what was written."""

    @property
    def writes_each_token_alone(self) -> bool:
        """Whether an entry can be written, and overwritten, without any other."""

    @property
    def num_sink(self) -> int:
        """First slots of a row, which are written another way than the others."""

    @property
    def flush_tokens(self) -> int:
        """Tokens that are packed at once while decoding."""

    @property
    def fixed_bytes(self) -> int:
        """Bytes that do not depend on the number of entries."""

    @property
    def key_format(self) -> Format:
        """How keys are written."""

    @property
    def value_format(self) -> Format:
        """How values are written."""

    def of_heads(self, heads: slice) -> LayerCodec:
        """Return how the entries of some of the heads are written; itself where heads do not differ."""


class Codec(Protocol):
    """How entries are written, whatever the model."""

    @property
    def is_exact(self) -> bool:
        """Whether what is read is what was written."""

    @property
    def writes_each_token_alone(self) -> bool:
        """Whether an entry can be written, and overwritten, without any other."""

    @property
    def joins_heads(self) -> bool:
        """Whether the heads of a token are written together, so that they stay, or leave, together."""

    @property
    def joins_slots(self) -> bool:
        """Whether the heads of a slot are written at once, whichever tokens they hold."""

    @property
    def data_dependent(self) -> bool:
        """Whether the bytes of entries depend on them; the closed forms then give the most there can be."""

    @property
    def takes_pieces(self) -> bool:
        """Whether entries may be written piece by piece, each while those before it are read some at a time."""

    @property
    def flush_tokens(self) -> int:
        """Tokens that are packed at once while decoding."""

    def of_layer(self, view: ModelView, layer: int) -> LayerCodec:
        """Return how the entries of a layer are written; itself where layers do not differ."""

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return what reads packed entries of a model with this dtype on this device; None where none are packed."""

    def unsupported(self, view: ModelView) -> str | None:
        """Return why the entries of a model cannot be written or read, or None."""
