"""Entries kept as packed codes, the latest ones as the model made them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from kvbench.cache.codecs.base import Packing, Room
from kvbench.cache.codecs.kernel import ReadByKernel
from kvbench.cache.codecs.quantiser import Quantiser
from kvbench.kernels.packed import First, Kernel, Rows, Run
from kvbench.types import ModelView


@dataclass(frozen=True, kw_only=True)
class PackedCodec(ReadByKernel):
    """Keys and values are rounded to codes once, and their codes never change.

    A side whose tokens share scales gathers `residual` tokens and packs them all at once; a side whose tokens have
    their own keeps the latest `residual` ones exact, and packs a token when it is no longer one of them.

    Args:
        key_quantiser: how keys become codes.
        value_quantiser: how values become codes.
        residual: tokens; 0 for none, so that even the newest one is packed before it is attended to.
        kernel: as in ReadByKernel.
    """

    is_exact: ClassVar[bool] = False
    data_dependent: ClassVar[bool] = False
    takes_pieces: ClassVar[bool] = True
    joins_heads: ClassVar[bool] = False
    joins_slots: ClassVar[bool] = False
    num_sink: ClassVar[int] = 0
    fixed_bytes: ClassVar[int] = 0

    key_quantiser: Quantiser
    value_quantiser: Quantiser
    residual: int

    def __post_init__(self) -> None:
        """Refuse residuals that groups do not divide, and kernels that do not exist."""
        super().__post_init__()
        check_residual(self.residual, max(self.key_quantiser.tokens, self.value_quantiser.tokens))

    @property
    def writes_each_token_alone(self) -> bool:
        """Whether an entry can be written, and overwritten, without any other."""
        return self.residual == 0

    @property
    def flush_tokens(self) -> int:
        """Tokens that are packed at once while decoding."""
        return max(self.key_format.flush, self.value_format.flush)

    @property
    def key_format(self) -> PackedFormat:
        """How keys are written."""
        return PackedFormat(quantiser=self.key_quantiser, rule=self)

    @property
    def value_format(self) -> PackedFormat:
        """How values are written."""
        return PackedFormat(quantiser=self.value_quantiser, rule=self)

    def of_layer(self, view: ModelView, layer: int) -> PackedCodec:
        """Return the codec itself."""
        return self

    def of_heads(self, heads: slice) -> PackedCodec:
        """Return the codec itself."""
        return self


def check_residual(residual: int, group: int) -> None:
    """Refuse a residual that groups of so many tokens do not divide."""
    if residual < 0:
        raise ValueError(f"strategy.codec.residual must be 0 or more; got {residual}.")
    if group > 1 and (residual == 0 or residual % group):
        raise ValueError(
            f"strategy.codec.residual must be a multiple of the {group} tokens that share a scale "
            f"(strategy.codec.*group), as groups are packed whole; got {residual}."
        )


class Rule(Protocol):
    """What both sides of a packed cache have in common."""

    @property
    def residual(self) -> int:
        """Tokens, as in PackedCodec."""

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> Kernel:
        """Return what reads packed entries of a model with this dtype on this device."""


@dataclass(frozen=True, kw_only=True)
class PackedFormat:
    """How one side of a cache is packed.

    Args:
        quantiser: how entries become codes.
        rule: what both sides have in common.
    """

    quantiser: Packing
    rule: Rule

    @property
    def keep(self) -> int:
        """The latest entries that are exact once the cache has settled."""
        return self.rule.residual if self.quantiser.tokens == 1 else 0

    @property
    def flush(self) -> int:
        """Entries that are packed at once while decoding."""
        return 1 if self.quantiser.tokens == 1 else self.rule.residual

    @property
    def exact_rows(self) -> int:
        """Exact entries there is room for: those that stay, and those that gather until they are packed."""
        return self.keep + self.flush if self.rule.residual > 0 else 0

    def packed(self, entries: int) -> int:
        """Return how many of so many entries are packed once the cache has settled."""
        return max(0, entries - self.keep) // self.flush * self.flush

    def empty(self, like: Tensor, capacity: int) -> PackedPayload:
        """Return room for `capacity` entries shaped as `like` [B, G, T, D]."""
        return PackedPayload(self, like, capacity)

    def allocated_bytes(self, heads: int, dim: int, capacity: int, dtype: torch.dtype) -> int:
        """Return the bytes of room for so many entries of so many heads, metadata included."""
        exact = self.exact_rows * dim * dtype.itemsize
        return heads * (self.packed_bytes(dim, self.packed(capacity)) + exact)

    def used_bytes(self, heads: int, dim: int, entries: int, dtype: torch.dtype) -> int:
        """Return the bytes of so many entries of so many heads, metadata included, once they have settled."""
        packed = self.packed(entries)
        return heads * (self.packed_bytes(dim, packed) + (entries - packed) * dim * dtype.itemsize)

    def rooms(self, batch: int, heads: int, dim: int, capacity: int, dtype: torch.dtype) -> list[Room]:
        """Return what is kept of packed entries."""
        packed = self.packed(capacity)
        return [
            Room(batch=batch, entries=packed // each.tokens, bytes=batch * heads * each.bytes(packed))
            for each in self.quantiser.kept(dim)
        ]

    def packed_bytes(self, dim: int, entries: int) -> int:
        """Return the bytes of so many packed entries of one head."""
        return sum(each.bytes(entries) for each in self.quantiser.kept(dim))


def in_ring(ring: Tensor, first: int, stop: int) -> Tensor:
    """Return a copy of slots first .. stop of a ring [B, G, rows, D], where slot s is row s % rows."""
    return ring.index_select(2, torch.arange(first, stop, device=ring.device) % ring.shape[2])


class PackedPayload:
    """Codes of the earlier entries, and a ring of exact ones, where slot s is row s % `exact_rows`.

    Args:
        how: entries are written.
        like: an example of entries [B, G, T, D].
        capacity: slots per row and head.
    """

    def __init__(self, how: PackedFormat, like: Tensor, capacity: int) -> None:
        batch, heads, _, dim = like.shape
        self.how, self.capacity, self.dtype = how, capacity, like.dtype
        self.kernel = how.rule.kernel_on(like.device, like.dtype)
        self.exact = like.new_zeros((batch, heads, how.exact_rows, dim))
        self.filled = 0  # slots in use, where some are exact
        self.packed = 0  # the first of them, whose entries are codes
        self._allocate(capacity)

    def _allocate(self, capacity: int) -> None:
        """Make room for what is kept of packed entries."""
        (batch, heads, _, dim), slots = self.exact.shape, self.how.packed(capacity)
        self.kept = [
            self.exact.new_zeros((batch, *each.rows(heads, slots)), dtype=each.dtype)
            for each in self.how.quantiser.kept(dim)
        ]
        self.moved()

    def moved(self) -> None:
        """Read what is kept from where it is now."""
        self.run = self.how.quantiser.run(self.kept, self.exact.shape[3], self.kernel)

    def write(self, start: int, entries: Tensor, position: Tensor | int | None = None) -> None:
        """Store entries [B, G, T, D] at slots start .. start + T."""
        count, rows = entries.shape[2], self.exact.shape[2]
        if rows == 0:
            self._pack(start, entries)
            return
        self.filled = start + count
        if self.packed == start or count > 1:  # a prompt, or a piece of it: what is packed in the end is packed at once
            if self.packed < start:
                entries = torch.cat([in_ring(self.exact, self.packed, start), entries], dim=2)
            before, self.packed = self.packed, max(self.packed, self.how.packed(self.filled))
            self._pack(before, entries[:, :, : self.packed - before])
            entries = entries[:, :, self.packed - before :]
        first = self.filled - entries.shape[2]
        if entries.shape[2] == 1:
            self.exact.narrow(2, first % rows, 1).copy_(entries)
        elif entries.shape[2] > 1:
            row = torch.arange(first, self.filled, device=entries.device) % rows
            self.exact.index_copy_(2, row, entries)

    def settle(self, position: Tensor) -> None:
        """Pack the oldest exact entries, if there is no room for another one."""
        rows = self.exact.shape[2]
        if rows == 0 or self.filled - self.packed < rows:
            return
        first, flush = self.packed % rows, self.how.flush  # rows are a multiple of those packed at once, or it is 1
        self._pack(self.packed, self.exact.narrow(2, first, flush))
        self.packed += flush

    def _pack(self, at: int | Tensor, entries: Tensor) -> None:
        if entries.shape[2] > 0:
            self.how.quantiser.write(self.kept, self.run, at, entries)

    def scatter(self, slot: Tensor, entry: Tensor, position: Tensor | int | None = None) -> None:
        """Store one entry [B, G, 1, D] per row and head at its own slot [B, 1 or G], or k of them at [B, 1 or G, k]."""
        self._pack(slot[:, :, None] if slot.dim() == 2 else slot, entry)

    def entries(self, stop: int, position: Tensor | None = None) -> Rows:
        """Return the entries of slots 0 .. stop: codes, and the exact ones, as they lie."""
        rows = self.exact.shape[2]
        packed = stop if rows == 0 else self.packed
        parts: list[Tensor | Run] = [self._coded(packed)] if packed > 0 else []
        if packed < stop:
            first = packed % rows
            parts.append(self.exact.narrow(2, first, min(stop - packed, rows - first)))
            if stop - packed > rows - first:
                parts.append(self.exact.narrow(2, 0, stop - packed - (rows - first)))
        return Rows(parts, self.dtype)

    def _coded(self, count: int) -> Run:
        """Return the first entries as attention reads them, of what is kept."""
        return First(self.run, count)

    def read(self, stop: int, position: Tensor | None = None) -> Tensor:
        """Return a copy of slots 0 .. stop as numbers [B, G, stop, D]."""
        wide = torch.promote_types(self.dtype, torch.float32)
        return self.entries(stop).numbers(0, stop, wide).to(self.dtype)

    def appended(self, stop: int) -> list[tuple[Tensor, int]]:
        """Return what is kept of packed entries, and how much of it is."""
        packed = stop if self.exact.shape[2] == 0 else self.packed
        kept = self.how.quantiser.kept(self.exact.shape[3])
        return [(room, packed // each.tokens) for room, each in zip(self.kept, kept, strict=True)]

    def unused_bytes(self) -> int:
        """Return 0: entries need what the closed form says."""
        return 0

    def grow(self, capacity: int, used: int) -> None:
        """Move to storage for `capacity` slots; the old storage is freed."""
        before, self.capacity = self.kept, capacity
        self._allocate(capacity)
        for room, rows in zip(self.kept, before, strict=True):
            room.narrow(2, 0, rows.shape[2]).copy_(rows)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held, what entries are packed with included, which caches of one model share."""
        return (*self.kept, self.exact, *self.how.quantiser.tensors())

    def snapshot(self) -> tuple[int, int, Tensor]:
        """Return what `restore` needs to take back entries appended later."""
        return self.filled, self.packed, self.exact.clone()

    def restore(self, snapshot: object) -> None:
        """Go back to a snapshot, in the same storage."""
        exact: Tensor
        self.filled, self.packed, exact = snapshot  # type: ignore[misc]
        self.exact.copy_(exact)
