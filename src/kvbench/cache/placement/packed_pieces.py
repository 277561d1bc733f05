"""Packed keys, or values, in parts that each pack what is written there."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kvbench.cache.codecs.packed import PackedFormat, PackedPayload
from kvbench.cache.placement.pieces import Divided, Piece
from kvbench.cache.placement.rooms import Place, Tier
from kvbench.cache.placement.tiers import Traffic
from kvbench.kernels.packed import Rows


class PackedPart:
    """Entries that are packed, and read, where they lie.

    Args:
        tier: where that is.
        how: entries are written.
        like: an example of entries on the device.
        size: [B, G, entries, D].
    """

    def __init__(self, tier: Tier, how: PackedFormat, like: Tensor, size: torch.Size) -> None:
        batch, heads, entries, dim = size
        device = torch.device("cpu") if tier == "host" else like.device
        self.tier = tier
        self.payload = how.empty(torch.empty((batch, heads, 0, dim), dtype=like.dtype, device=device), entries)

    @property
    def bytes(self) -> int:
        """Bytes of everything held."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def put(self, at: int, rows: Tensor, traffic: Traffic) -> None:
        """Send rows as the model made them, and pack them there."""
        self.payload.write(at, rows.to(self.payload.exact.device))
        traffic.down += rows.nbytes if self.tier == "host" else 0

    def get(self, into: Tensor, traffic: Traffic) -> None:
        """Unpack rows there, and send them."""
        into.copy_(self.payload.read(into.shape[2]))
        traffic.up += into.nbytes if self.tier == "host" else 0

    def entries(self, count: int) -> Rows:
        """Return the first rows as attention reads them."""
        return self.payload.entries(count)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held in memory."""
        return self.payload.tensors()


class DividedPacked(Divided):
    """Packed keys, or values: whole rows of the batch, or entries that are each packed alone.

    Args:
        payload: what is divided.
        used: slots of it in use.
        place: which part lies where.
        traffic: counts what moves.
    """

    def __init__(self, payload: PackedPayload, used: int, place: Place, traffic: Traffic) -> None:
        self._place, self._traffic, self._how = place, traffic, payload.how
        self._like = payload.exact.new_empty(0)
        batch, heads, _, dim = payload.exact.shape
        self._divide(torch.Size((batch, heads, payload.capacity, dim)))
        self._spread(payload, used)

    def _part(self, tier: Tier, size: torch.Size) -> PackedPart:
        return PackedPart(tier, self._how, self._like, size)

    def _payloads(self) -> Iterator[tuple[Piece, PackedPayload]]:
        for piece in self.pieces:
            assert isinstance(piece.part, PackedPart)
            yield piece, piece.part.payload

    def _spread(self, payload: PackedPayload, used: int) -> None:
        """Copy what a payload keeps of its first slots to the parts, as it is packed."""
        for piece, mine in self._payloads():
            for into, rows in zip(mine.kept, self._kept_of(piece, payload, used), strict=True):
                into.narrow(2, 0, rows.shape[2]).copy_(rows)
                self._traffic.down += rows.nbytes if piece.tier == "host" else 0
            if piece.axis == "batch":
                exact = payload.exact[piece.where.start : piece.where.stop]
                mine.restore((payload.filled, payload.packed, exact))
                self._traffic.down += exact.nbytes if piece.tier == "host" else 0

    def _kept_of(self, piece: Piece, payload: PackedPayload, used: int) -> list[Tensor]:
        """Return what a payload keeps of the entries of a part that are in use."""
        if piece.axis == "batch":
            return [rows[piece.where.start : piece.where.stop] for rows in payload.kept]
        last = max(piece.where.start, min(used, piece.where.stop))
        return [rows[:, :, piece.where.start : last] for rows in payload.kept]

    def settle(self, position: Tensor) -> None:
        """Pack what has to be packed, in each part."""
        for _, payload in self._payloads():
            payload.settle(position)

    def entries(self, stop: int, position: Tensor) -> Rows:
        """Return those of one part: all are written alike, and attention to all of them is not for one place."""
        piece, payload = next(self._payloads())
        return payload.entries(piece.within(position.narrow(2, 0, stop), 0)[0].shape[2])

    def grow(self, capacity: int, used: int) -> None:
        """Divide anew what is in use, as it is packed, and room for `capacity` slots."""
        whole = self._how.empty(self._like.new_empty((*self._size[:2], 0, self._size[3])), self.capacity)
        for piece, mine in self._payloads():
            for rows, kept in zip(self._kept_of(piece, whole, used), mine.kept, strict=True):
                rows.copy_(kept.narrow(2, 0, rows.shape[2]))
                self._traffic.up += rows.nbytes if piece.tier == "host" else 0
            if piece.axis == "batch":
                whole.exact[piece.where.start : piece.where.stop] = mine.exact
                whole.filled, whole.packed = mine.filled, mine.packed
        whole.grow(capacity, used)
        self._divide(torch.Size((*self._size[:2], capacity, self._size[3])))
        self._spread(whole, used)

    def snapshot(self) -> list[object]:
        """Return what `restore` needs to take back entries appended later."""
        return [payload.snapshot() for _, payload in self._payloads()]

    def restore(self, snapshot: object) -> None:
        """Go back to a snapshot, in the same storage."""
        for (_, payload), mine in zip(self._payloads(), snapshot, strict=True):  # type: ignore[call-overload]
            payload.restore(mine)
