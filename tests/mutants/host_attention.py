"""Hosts that attend to what they have, and each get one thing wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.codecs.base import Room
from kvbench.cache.codecs.packed import PackedPayload
from kvbench.cache.placement import apart, rooms
from kvbench.cache.placement.apart import Half, Halves
from kvbench.cache.placement.mover import Buffer, Mover
from kvbench.cache.placement.packed_pieces import DividedPacked, PackedPart
from kvbench.cache.placement.pieces import Divided, Piece
from kvbench.cache.placement.rooms import Place, rooms_of
from kvbench.cache.placement.tiers import Traffic
from kvbench.cache.plan import LayerPlan
from kvbench.cache.slots import Slots
from kvbench.kernels.attend import Partial
from kvbench.strategies.placement.tiers import Tiers
from kvbench.types import RunShape
from tests.mutants.core_mutant import Mutant
from tests.support import host_attention, placement
from tests.support.host_attention import RAGGED

answer, ask, begin, attend, link_ms = Halves._answer, Halves._ask, Divided.__init__, Halves.attend, Tiers.link_ms
kept_of, spread, put = DividedPacked._kept_of, DividedPacked._spread, PackedPart.put


def averaged(parts: Sequence[Partial]) -> Partial:
    """Give both halves the same weight."""
    return Partial(torch.stack([part.out for part in parts]).mean(dim=0), parts[0].log_sum)


def sees_all(self: Halves, half: Half, *more: Any) -> Partial:
    """Attend to padding."""
    return answer(self, replace(half, tile=replace(half.tile, visible=None)), *more)


def one_row_for_all(self: Halves, half: Half) -> Half:
    """Ask for every row what the first one asks."""
    return ask(self, replace(half, query=half.query[:1].expand_as(half.query)))


def never_told(self: Halves, slots: Slots) -> None:
    """Believe that every slot holds an entry."""
    piece = self.keys.piece("host")
    if piece is not None:
        self._seen = torch.ones(piece.within(slots.position, 0)[0].shape, dtype=torch.bool)


def forgotten(self: Divided, capacity: int, used: int) -> None:
    """Lose what was held when room is made."""
    self._divide(torch.Size((*self._size[:2], capacity, self._size[3])))
    self.write(0, self._like.new_zeros(*self._size[:2], used, self._size[3]))


def fetched_too(self: Halves, query: Tensor, slots: Slots, scale: float) -> Tensor:
    """Fetch the entries, too."""
    self.keys.read(slots.filled)
    return attend(self, query, slots, scale)


def uncounted(self: Halves, half: Half) -> Half:
    """Do not count the query."""
    self._traffic.down -= half.query.nbytes
    return ask(self, half)


def kept_twice(self: Divided, data: Tensor, used: int, place: Place, traffic: Traffic) -> None:
    """Keep the storage that was divided."""
    begin(self, data, used, place, traffic)
    self.before = data  # type: ignore[attr-defined]


def idle(self: Mover, size: int) -> Buffer:
    """Take room for a buffer that nobody uses."""
    return Buffer(torch.zeros(size + 64, dtype=torch.uint8))


def all_begin_with_the_first(self: DividedPacked, piece: Piece, payload: PackedPayload, used: int) -> list[Tensor]:
    """Give every part the codes that the first one has."""
    found = kept_of(self, piece, payload, used)
    return [whole.narrow(2, 0, rows.shape[2])[: len(rows)] for whole, rows in zip(payload.kept, found, strict=True)]


def without_the_ring(self: DividedPacked, payload: PackedPayload, used: int) -> None:
    """Lose the latest entries, which are not packed."""
    spread(self, payload, used)
    for _, mine in self._payloads():
        mine.exact.zero_()


def emptied(self: DividedPacked, capacity: int, used: int) -> None:
    """Lose what was packed when room is made."""
    self._divide(torch.Size((*self._size[:2], capacity, self._size[3])))


def counted_back(self: DividedPacked, snapshot: list[tuple[int, int, Tensor]]) -> None:
    """Keep the latest entries of what was decoded since."""
    for (_, mine), (filled, packed, _) in zip(self._payloads(), snapshot, strict=True):
        mine.filled, mine.packed = filled, packed


def without_the_latest(plan: LayerPlan, run: RunShape, dtype: torch.dtype) -> list[Room]:
    """Count what is packed alone."""
    by_entry = replace(plan, place=plan.place and replace(plan.place, attend="device"))
    return rooms_of(by_entry, run, dtype)


def packed_for_nothing(self: PackedPart, at: int, rows: Tensor, traffic: Traffic) -> None:
    """Count nothing that goes down."""
    put(self, at, rows, Traffic())


def one_way(self: Tiers, before: Traffic, after: Traffic, steps: int) -> float | None:
    """Forget the way down."""
    return link_ms(replace(self, attend="device"), before, after, steps)


ROWS = ("placement.host=0.34", "placement.axis=batch")
THIRD, MOST = "placement.host=0.34", "placement.host=0.7"  # which ends before, and behind, what is left of a prompt
SAME = partial(host_attention.same_as_resident, "gpt2", THIRD, lengths=RAGGED)
LEFT = partial(host_attention.same_as_resident, "llama_gqa", MOST, name="snapkv", lengths=(24, 9, 17))
GROWN = partial(host_attention.grown_equals_resident, THIRD)
MOVED = partial(host_attention.moves_what_the_formula_says, THIRD)
HELD = partial(host_attention.bytes_lie_where_they_were_said_to, THIRD)

PACKED = partial(host_attention.same_as_resident, "llama_gqa", THIRD, codec="int8", lengths=(24, 24, 24))
LATEST = partial(host_attention.same_as_resident, "llama_gqa", *ROWS, codec="kivi4", lengths=(24, 24, 24))

MUTANTS = (
    Mutant(
        name="all parts have the first one's codes",
        patches=((DividedPacked, "_kept_of", all_begin_with_the_first),),
        killed_by=(PACKED, LATEST),
    ),
    Mutant(
        name="the latest are lost",
        patches=((DividedPacked, "_spread", without_the_ring),),
        killed_by=(LATEST,),
    ),
    Mutant(
        name="growing forgets what is packed",
        patches=((DividedPacked, "grow", emptied),),
        killed_by=(partial(host_attention.grown_equals_resident, THIRD, codec="int8", lengths=(24, 24, 24)),),
    ),
    Mutant(
        name="restoring forgets the latest",
        patches=((DividedPacked, "restore", counted_back),),
        killed_by=(
            partial(
                placement.a_restored_cache_decodes_the_same, "split", *ROWS, "placement.attend=host", codec="kivi4"
            ),
        ),
    ),
    Mutant(
        name="the latest take no room",
        patches=((rooms, "rooms_of", without_the_latest),),
        killed_by=(partial(host_attention.bytes_lie_where_they_were_said_to, *ROWS, codec="kivi4"),),
    ),
    Mutant(
        name="what is packed there is not sent",
        patches=((PackedPart, "put", packed_for_nothing),),
        killed_by=(partial(host_attention.moves_what_the_formula_says, *ROWS, codec="kivi4"),),
    ),
    Mutant(
        name="packed halves are averaged",
        patches=((apart, "merged", averaged),),
        killed_by=(partial(host_attention.native_is_as_near_as_resident, THIRD, codec="int8"), PACKED),
    ),
    Mutant(name="halves are averaged", patches=((apart, "merged", averaged),), killed_by=(SAME, LEFT, GROWN)),
    Mutant(name="the host attends to padding", patches=((Halves, "_answer", sees_all),), killed_by=(SAME, LEFT)),
    Mutant(name="the host is not told of holes", patches=((Halves, "look", never_told),), killed_by=(SAME, GROWN)),
    Mutant(name="all rows ask the same", patches=((Halves, "_ask", one_row_for_all),), killed_by=(SAME, LEFT)),
    Mutant(name="growing forgets", patches=((Divided, "grow", forgotten),), killed_by=(GROWN,)),
    Mutant(name="entries are fetched, too", patches=((Halves, "attend", fetched_too),), killed_by=(MOVED,)),
    Mutant(name="queries are not counted", patches=((Halves, "_ask", uncounted),), killed_by=(MOVED,)),
    Mutant(name="entries are kept twice", patches=((Divided, "__init__", kept_twice),), killed_by=(HELD,)),
    Mutant(name="there are buffers", patches=((Mover, "_buffer", idle),), killed_by=(HELD,)),
    Mutant(
        name="what the host knows takes no room",
        patches=((rooms, "seen_bytes", lambda plan, run: 0),),
        killed_by=(HELD,),
    ),
    Mutant(
        name="a link is passed one way",
        patches=((Tiers, "link_ms", one_way),),
        killed_by=(host_attention.a_link_is_passed_both_ways,),
    ),
)
