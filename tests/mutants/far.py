"""Pages elsewhere that each get one thing wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from kvbench.cache.far import Far
from kvbench.cache.far_bytes import FarBytes
from kvbench.cache.pages import Bounds
from kvbench.cache.placement.levels import Disk, Level, Memory
from kvbench.cache.placement.rooms import Placed, Tier
from kvbench.cache.placement.tiers import Traffic
from kvbench.cache.slots import Slots
from kvbench.kernels.attend import Tile
from kvbench.strategies.placement.link import Link
from tests.mutants.core_mutant import Mutant
from tests.support import far

tiles, take, add, forget, choose = Far.tiles, Far.take, Far._add, Level.forget, Bounds.choose
ensure, make_room, put, written, placed, bytes_on = (
    Level._ensure,
    Level._make_room,
    Level.put,
    Disk.put,
    FarBytes.placed,
    Level.bytes_on,
)


def newest_is_not_read(self: Far, query: Tensor, slots: Slots) -> list[Tile]:
    """Read whole pages only."""
    filled, self._filled = self._filled, 0
    found = tiles(self, query, slots)
    self._filled = filled
    return found


def first_pages(self: Bounds, query: Tensor, among: int, most: int) -> Tensor:
    """Read the oldest pages whatever the query."""
    return torch.arange(most).expand(*self._rows.shape[:2], -1)


def in_slot_order(self: Far, slots: Slots, victims: Tensor) -> None:
    """Keep only the first of the entries that leave together."""
    take(self, slots, victims[:, :, :1].expand_as(victims))


def forgets_nothing(self: Level, first: int) -> None:
    """Take pages that were written since for those that come."""


def whatever_is_busy(self: Level, row: Tensor, page: Tensor, busy_row: Tensor, busy_frame: Tensor) -> Tensor:
    """Let pages leave that the step reads."""
    return make_room(self, row, page, busy_row[:0], busy_frame[:0])


def latest_first(self: Level, count: int) -> Tensor:
    """Let the latest page leave."""
    self._now -= count
    return torch.arange(self._now, self._now + count)


def reads_do_not_count(self: Level, row: Tensor, page: Tensor) -> Tensor:
    """Forget that pages were read."""
    stamp = self._stamp.clone()
    at = ensure(self, row, page)
    self._stamp.clamp_(max=int(stamp.max()))
    return at


def one_row_for_all(self: Memory, row: Tensor, page: Tensor) -> list[Tensor]:
    """Read the first row's pages."""
    return read(self, row * 0, page)


def written_elsewhere(self: Disk, first: int, pages: Sequence[Tensor]) -> None:
    """Write pages of all rows in another order than they are read."""
    written(self, first, [side.flip(0) for side in pages])


def without_tables(self: FarBytes) -> Placed:
    """Forget what is known of pages."""
    found = placed(self)
    return Placed(device=found.device, host=found.host - 4, disk=found.disk)


def device_tells_nothing(self: Level, tier: Tier) -> int:
    """Count frames on the device for the host's."""
    return bytes_on(self, tier) + (sum(data.nbytes for data in self._data) if tier == "host" else 0)


def hands_down_again(self: Level, first: int, pages: Sequence[Tensor]) -> None:
    """Send pages down twice."""
    self._below.put(first, pages)
    put(self, first, pages)


def sent_for_by_nobody(self: Level, row: Tensor, page: Tensor) -> Tensor:
    """Have what is not at hand cross without being sent for."""
    at = ensure(self, row, page)
    self._traffic.fetches = 0
    return at


def one_way(self: Link, before: Traffic, after: Traffic, steps: int) -> float | None:
    """Forget what goes down."""
    return link_ms(self, before, replace(after, down=before.down), steps)


def stays_open(self: Level) -> None:
    """Let go of nothing."""


read, link_ms = Memory.read, Link.link_ms
_LOOPS = partial(far.equals_loops, "llama_gqa", lengths=(23,))
_LEVELS = partial(far.levels_change_nothing, "llama_gqa")
_MOVES = partial(far.pages_move_as_often_as_they_miss, ())
_BYTES = partial(far.bytes_lie_where_they_were_said_to, ())

MUTANTS = (
    Mutant(name="the newest page is not read", patches=((Far, "tiles", newest_is_not_read),), killed_by=(_LOOPS,)),
    Mutant(name="the oldest pages are read", patches=((Bounds, "choose", first_pages),), killed_by=(_LOOPS,)),
    Mutant(
        name="one entry leaves for all",
        patches=((Far, "take", in_slot_order),),
        killed_by=(_LOOPS, partial(far.every_entry_is_held_once, "llama_gqa")),
    ),
    Mutant(
        name="pages that came since are not forgotten",
        patches=((Level, "forget", forgets_nothing),),
        killed_by=(far.forgotten_pages_leave_their_frames,),
    ),
    Mutant(
        name="pages that a step reads leave",
        patches=((Level, "_make_room", whatever_is_busy),),
        killed_by=(partial(far.frames_follow_their_policy, "fifo"),),
    ),
    Mutant(
        name="the latest page leaves",
        patches=((Level, "_later", latest_first),),
        killed_by=(partial(far.frames_follow_their_policy, "lru"),),
    ),
    Mutant(
        name="reads do not count",
        patches=((Level, "_ensure", reads_do_not_count),),
        killed_by=(far.often_read_pages_stay,),
    ),
    Mutant(
        name="all rows read the first one's pages", patches=((Memory, "read", one_row_for_all),), killed_by=(_LOOPS,)
    ),
    Mutant(name="rows change places on disk", patches=((Disk, "put", written_elsewhere),), killed_by=(_LEVELS,)),
    Mutant(name="pages go down twice", patches=((Level, "put", hands_down_again),), killed_by=(_MOVES,)),
    Mutant(
        name="misses wait for no link",
        patches=((Level, "_ensure", sent_for_by_nobody),),
        killed_by=(far.a_link_takes_what_moved_and_waits_where_pages_miss,),
    ),
    Mutant(
        name="pages go down without a link",
        patches=((Link, "link_ms", one_way),),
        killed_by=(far.a_link_takes_what_moved_and_waits_where_pages_miss,),
    ),
    Mutant(name="tables are forgotten", patches=((FarBytes, "placed", without_tables),), killed_by=(_BYTES,)),
    Mutant(
        name="files stay open",
        patches=((Level, "close", stays_open),),
        killed_by=(far.cleanup_lets_go,),
    ),
    Mutant(name="frames count twice", patches=((Level, "bytes_on", device_tells_nothing),), killed_by=(_BYTES,)),
)
