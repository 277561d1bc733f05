"""Attention to entries where they lie: in the host's memory by the host, on the device by the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.cache.codecs.base import Payload
from kvbench.cache.codecs.dense import DensePayload
from kvbench.cache.codecs.packed import PackedPayload
from kvbench.cache.placement.home import Home
from kvbench.cache.placement.packed_pieces import DividedPacked, PackedPart
from kvbench.cache.placement.pieces import Divided
from kvbench.cache.placement.rooms import Place, Tier
from kvbench.cache.placement.tiers import OnDevice, Traffic
from kvbench.cache.plan import LayerPlan
from kvbench.cache.slots import Slots
from kvbench.kernels.attend import EMPTY, Partial, Tile, attend_part, merged


@dataclass(frozen=True)
class Half:
    """What a query meets in one tier.

    Args:
        query: of the rows that lie there [B, H, 1, D].
        tile: the entries.
        arrives: once this is over, the query is there; None where it is there at once.
    """

    query: Tensor
    tile: Tile
    arrives: torch.cuda.Event | None = None


class Halves:
    """Slots that are divided between the host's memory and the device, and attended to in both.

    A query goes down, and what the host found for it comes up. On a GPU the device attends to its half while the query
    is on its way and the host attends to the other; no GPU has run it yet.

    Args:
        slots: whose keys and values are divided; where they were is freed.
        place: what lies where.
        traffic: counts what moves.
    """

    def __init__(self, slots: Slots, place: Place, traffic: Traffic) -> None:
        self.axis, self._traffic = place.shares.axis, traffic
        slots.keys = self.keys = _divided(slots.keys, slots.filled, place, traffic)
        slots.values = self.values = _divided(slots.values, slots.filled, place, traffic)
        self._seen = torch.empty(0, 0, 0, dtype=torch.bool)  # which of the host's slots hold an entry [B, 1 or G, rows]
        self._knows_holes = False
        slots.halves = self
        self.look(slots)

    def look(self, slots: Slots) -> None:
        """Tell the host which slots hold an entry: once the prompt was read, and when there are more slots."""
        piece = self.keys.piece("host")
        if piece is None:
            return
        size = piece.within(slots.position, 0)[0].shape
        if self._seen.shape != size:
            self._seen, self._knows_holes = torch.ones(size, dtype=torch.bool), False
        if slots.has_holes and not self._knows_holes:
            position, _ = piece.within(slots.position.narrow(2, 0, slots.filled), 0)
            self._seen.narrow(2, 0, position.shape[2]).copy_(position != EMPTY)
            self._traffic.down += position.numel()  # a byte each
            self._knows_holes = True

    def attend(self, query: Tensor, slots: Slots, scale: float) -> Tensor:
        """Attention of one query token per row [B, H, 1, D]; returns the output [B, H, 1, D_v]."""
        self.look(slots)
        self._traffic.fetches += 1
        there, here = self._half("host", query, slots), self._half("device", query, slots)
        there = None if there is None else self._ask(there)
        found = [] if here is None else [attend_part(here.query, [here.tile], scale)]
        if there is not None:
            found.insert(0, self._answer(there, scale, query.device))
        if self.axis == "batch":  # the first rows are the host's
            return torch.cat([part.out for part in found])
        return merged(found).out

    def _half(self, tier: Tier, query: Tensor, slots: Slots) -> Half | None:
        """Return what the query meets in one tier; None for nothing."""
        keys, values = self.keys.piece(tier), self.values.piece(tier)
        if keys is None or values is None:
            return None
        position, _ = keys.within(slots.position.narrow(2, 0, slots.filled), 0)
        count = position.shape[2]
        if count == 0:
            return None
        assert isinstance(keys.part, OnDevice | PackedPart)
        assert isinstance(values.part, OnDevice | PackedPart)
        visible = None
        if slots.has_holes:
            visible = self._seen.narrow(2, 0, count) if tier == "host" else position != EMPTY
        tile = Tile(keys.part.entries(count), values.part.entries(count), visible=visible)
        return Half(query[keys.where.start : keys.where.stop] if self.axis == "batch" else query, tile)

    def _ask(self, half: Half) -> Half:
        """Send a query down, behind what was written there before it."""
        query = half.query
        self._traffic.down += query.nbytes
        self._traffic.waits += 1
        sent = query.to("cpu", copy=True, non_blocking=True)
        arrives = torch.cuda.current_stream(query.device).record_event() if query.is_cuda else None
        return Half(sent, half.tile, arrives)

    def _answer(self, half: Half, scale: float, device: torch.device) -> Partial:
        """Attend to what the host has, and send up what comes of it."""
        if half.arrives is not None:
            half.arrives.synchronize()
        made = attend_part(half.query, [half.tile], scale)
        self._traffic.up += made.out.nbytes + made.log_sum.nbytes
        return Partial(*(rows.to(device, copy=True) for rows in (made.out, made.log_sum)))

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held."""
        return (*self.keys.tensors(), *self.values.tensors(), self._seen)

    def bytes_on(self, tier: Tier) -> int:
        """Return the bytes that lie in one tier."""
        parts = sum(
            piece.part.bytes for side in (self.keys, self.values) for piece in side.pieces if piece.tier == tier
        )
        return parts + (self._seen.nbytes if tier == "host" else 0)


def _divided(payload: Payload, used: int, place: Place, traffic: Traffic) -> Divided:
    """Return keys, or values, in parts; where they were is freed."""
    if isinstance(payload, PackedPayload):
        return DividedPacked(payload, used, place, traffic)
    assert isinstance(payload, DensePayload)
    return Divided(payload.data, used, place, traffic)


class Apart(Home):
    """Keeps the entries of a layer in halves that are attended to where they lie: nothing passes through a buffer."""

    def __init__(self, plan: LayerPlan, nothing: Tensor) -> None:
        super().__init__(plan, nothing)
        self._halves: list[Halves] = []

    def keep(self, slots: Sequence[Slots]) -> None:
        """Divide slots that are not, and leave the others as they are: what is appended lies where it has to."""
        for each in slots:
            if each.halves is None:
                self._halves.append(Halves(each, self.place, self.traffic))
            else:
                each.halves.look(each)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held in memory."""
        return tuple(tensor for halves in self._halves for tensor in halves.tensors())

    def bytes_on(self, tier: Tier) -> int:
        """Return the bytes that lie in one tier."""
        return sum(halves.bytes_on(tier) for halves in self._halves)
