"""Packed entries whose steps are recorded once: how many are packed is found on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.cache.codecs.packed import PackedFormat, PackedPayload


class OpenPayload:
    """Reads all its codes and all its exact rows in every step; weights of 0 fall on what is not there.

    Args:
        inner: what it was while the prompt was read, whose storage it goes on with.
    """

    def __init__(self, inner: PackedPayload) -> None:
        self.inner = inner
        self.capacity = inner.capacity
        self._ring = torch.arange(inner.exact.shape[2], device=inner.exact.device)
        self._first = self._ring[:0]  # entry that is exact, the first one, before this step's is [1]

    @property
    def is_due(self) -> bool:
        """Whether entries are packed at the end of the next step."""
        return self.inner.filled + 1 - self.inner.packed >= len(self._ring)

    def skip(self) -> None:
        """Count an entry whose step was replayed."""
        inner, is_due = self.inner, self.is_due
        inner.filled += 1
        inner.packed += inner.how.flush if is_due else 0

    def scatter(self, slot: Tensor, entry: Tensor, position: Tensor | int | None = None) -> None:
        """Store one entry per row and head [B, G, 1, D] at a slot that is the same for all [B, 1 or G]."""
        inner, how = self.inner, self.inner.how
        at = slot[0, :1]
        self._first = (at - how.keep).clamp(min=0).div(how.flush, rounding_mode="floor") * how.flush
        inner.exact.index_copy_(2, at.remainder(len(self._ring)), entry)
        inner.filled += 1

    def settle(self, position: Tensor) -> None:
        """Pack the oldest exact entries, if there is no room for another one."""
        inner = self.inner
        if inner.filled - inner.packed < len(self._ring):
            return
        which = self._first + self._ring[: inner.how.flush]
        oldest = inner.exact.index_select(2, which.remainder(len(self._ring)))
        inner.how.quantiser.write(inner.kept, inner.run, which.expand(len(oldest), 1, -1), oldest)
        inner.packed += inner.how.flush

    def entries(self, stop: int, position: Tensor | None = None) -> OpenRows:
        """Return all entries there is room for."""
        length = len(self._ring)
        return OpenRows(self.inner, self._first, self._first + (self._ring - self._first).remainder(length))

    def read(self, stop: int, position: Tensor | None = None) -> Tensor:
        """Return a copy of slots 0 .. stop as numbers [B, G, stop, D], 0 where nothing is yet."""
        found = self.inner.read(self.inner.filled)
        return torch.nn.functional.pad(found, (0, 0, 0, stop - found.shape[2]))

    def unused_bytes(self) -> int:
        """Return 0: entries need what the closed form says."""
        return 0

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held."""
        return self.inner.tensors()

    def snapshot(self) -> object:
        """Return what `restore` needs to take back entries appended later."""
        return self.inner.snapshot()

    def restore(self, snapshot: object) -> None:
        """Go back to a snapshot, in the same storage."""
        self.inner.restore(snapshot)


@dataclass(frozen=True)
class OpenRows:
    """Codes and exact rows, of which a step tells by numbers on the device which entries they are.

    Args:
        of: what they are of.
        first: entries before this one are codes [1].
        slots: of the exact rows, those after the last entry included [rows].
    """

    of: PackedPayload
    first: Tensor
    slots: Tensor

    outlier_entries: ClassVar[int] = 0
    sink_entries: ClassVar[int] = 0

    @property
    def groups(self) -> int:
        """KV heads."""
        return self.of.exact.shape[1]

    @property
    def exact(self) -> int:
        """Entries that are as the model made them."""
        return self.of.filled - self.of.packed

    def logits(self, rows: Tensor) -> Tensor:
        """Return the products of rows [B, G, g, D] with every entry [B, G, g, m]; with what is not there, anything."""
        exact, codes = self.of.exact, self._codes
        wide = torch.promote_types(rows.dtype, torch.float32)
        out = rows.new_zeros((*rows.shape[:3], self.of.capacity + len(self.slots)), dtype=wide)
        if codes > 0:
            self.of._coded(codes).logits(rows.to(wide), out[..., :codes])
        out.index_copy_(3, self.slots, torch.matmul(rows.to(exact.dtype), exact.transpose(-1, -2)).to(wide))
        return out[..., : self.of.capacity]

    def weighted(self, weights: Tensor) -> Tensor:
        """Return the sum of the entries by weights [B, G, g, m], 0 for what is not there, as [B, G, g, D]."""
        exact, codes = self.of.exact, self._codes
        mine = torch.nn.functional.pad(weights, (0, len(self.slots))).index_select(3, self.slots)
        out = torch.matmul(mine.to(exact.dtype), exact)
        if codes > 0:
            is_code = torch.arange(codes, device=weights.device) < self.first
            out = out + self.of._coded(codes).weighted(weights[..., :codes] * is_code).to(out.dtype)
        return out

    @property
    def _codes(self) -> int:
        return self.of.how.packed(self.of.capacity)


def can_open(how: object) -> bool:
    """Return whether entries that are written so can be."""
    return type(how) is PackedFormat
