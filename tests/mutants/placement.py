"""Ways of keeping entries elsewhere that each get one thing wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from kvbench.cache.codecs.base import Room
from kvbench.cache.kv_cache import KVCache
from kvbench.cache.placement import home, rooms
from kvbench.cache.placement.home import Home
from kvbench.cache.placement.mover import Mover
from kvbench.cache.placement.rooms import Shares, Tier
from kvbench.cache.placement.tiers import OnDevice, OnHost, Traffic
from kvbench.cache.slots import Slots
from kvbench.planning.recompute import Choice
from kvbench.strategies.placement import tiers
from kvbench.strategies.placement.tiers import Tiers
from tests.mutants.core_mutant import Mutant
from tests.support import placement

cut, write, keep, note, put = Shares.cut, Home._write, Home.keep, Home.note, OnHost.put
link_ms, get, opened = Tiers.link_ms, OnDevice.get, Mover.open


def overlapping(self: Shares, room: Room, first: int = 0) -> dict[Tier, range]:
    """Let the host begin one entry late."""
    found = cut(self, room, first)
    return found | {"host": range(found["host"].start + 1, found["host"].stop)}


def one_token_short(self: Home, at: int, storage: Tensor, start: int, stop: int) -> None:
    """Lose the newest row of what is written."""
    write(self, at, storage, start, stop - 1 if start > 0 else stop)


def everything_again(self: Home, slots: Sequence[Slots]) -> None:
    """Send the whole layer down after every step."""
    self._kept = [0] * len(self._kept)
    keep(self, slots)


def late_hidden(self: Home, hidden: Tensor) -> None:
    """Keep what the next token's keys are made of."""
    note(self, hidden.roll(1, dims=1))


def never_back(self: Home, snapshot: list[int]) -> None:
    """Believe that what was decoded since is kept."""


def uncounted(self: OnHost, at: int, rows: Tensor, traffic: Traffic) -> None:
    """Count nothing."""
    put(self, at, rows, Traffic())


def copied_for_nothing(self: OnDevice, into: Tensor, traffic: Traffic) -> None:
    """Count no copy that stays on the device."""
    get(self, into, Traffic())


def untimed(self: Home, copy: Callable[[], None]) -> None:
    """Look at no clock."""
    copy()


def patient(self: Mover, which: Home) -> None:
    """Look at no clock while waiting."""
    before = which.traffic.stalled_s
    opened(self, which)
    which.traffic.stalled_s = before


def doubled(self: Mover, size: int) -> object:
    """Take twice the room."""
    return type("Buffer", (), {"data": torch.zeros(2 * size, dtype=torch.uint8)})()


def unturned(keys: Tensor, shift: Tensor, inverse_frequency: Tensor) -> Tensor:
    """Forget to rotate."""
    return keys


def one_way(self: Tiers, before: Traffic, after: Traffic, steps: int) -> float | None:
    """Forget what goes down."""
    return link_ms(self, before, dataclasses.replace(after, down=before.down), steps)


def _auto() -> None:
    """Run the oracle of "auto" in a folder of its own."""
    with TemporaryDirectory() as folder:
        placement.auto_makes_again_what_takes_least(Path(folder))


HOST = partial(placement.same_as_resident, "llama_gqa", "host", "placement.prefetch=0")  # layers share the one buffer
SURVIVORS = partial(placement.survivors_same_as_resident, "llama_gqa", "host", "placement.prefetch=0")
MOVED = partial(placement.moves_what_the_formula_says, "host")
HELD = partial(placement.bytes_lie_where_they_were_said_to, "host")
AGAIN = partial(placement.made_again_equals_the_full_cache, "llama_gqa", "17")

MUTANTS = (
    Mutant(
        name="a gap before the host's part",
        patches=((Shares, "cut", overlapping),),
        killed_by=(HOST, SURVIVORS, placement.shares_are_exact),
    ),
    Mutant(name="the newest row is lost", patches=((Home, "_write", one_token_short),), killed_by=(HOST, SURVIVORS)),
    Mutant(name="everything goes down again", patches=((Home, "keep", everything_again),), killed_by=(MOVED,)),
    Mutant(name="nothing is counted", patches=((OnHost, "put", uncounted),), killed_by=(MOVED,)),
    Mutant(
        name="copies on the device are not counted",
        patches=((OnDevice, "get", copied_for_nothing),),
        killed_by=(partial(placement.moves_what_the_formula_says, "split", *placement.THIRDS),),
    ),
    Mutant(
        name="fetching takes no time",
        patches=((Home, "_timed", untimed),),
        killed_by=(placement.waits_are_as_long_as_fetches_that_nobody_made_ahead,),
    ),
    Mutant(
        name="waiting takes no time",
        patches=((Mover, "open", patient),),
        killed_by=(placement.waits_are_as_long_as_fetches_that_nobody_made_ahead,),
    ),
    Mutant(
        name="no byte is locked",
        patches=((KVCache, "pinned_bytes", lambda self: 0),),
        killed_by=(placement.locked_bytes_are_those_the_system_says_are_locked,),
    ),
    Mutant(name="buffers are too large", patches=((Mover, "_buffer", doubled),), killed_by=(HELD,)),
    Mutant(
        name="what is not divided is not there",
        patches=((rooms, "NOTHING_BYTES", 0),),
        killed_by=(HELD, partial(placement.nothing_packed_is_nothing_elsewhere, "host")),
    ),
    Mutant(name="hidden states of other tokens", patches=((Home, "note", late_hidden),), killed_by=(AGAIN,)),
    Mutant(name="keys are not rotated", patches=((home, "turn", unturned),), killed_by=(AGAIN,)),
    Mutant(
        name="what goes down takes no time",
        patches=((Tiers, "link_ms", one_way),),
        killed_by=(placement.a_link_is_modelled_beside_what_is_measured,),
    ),
    Mutant(
        name="all that may be made again is",
        patches=((tiers, "recompute_length", lambda tokens, fetch: Choice(value=tokens, reason="")),),
        killed_by=(_auto,),
    ),
    Mutant(
        name="restoring forgets what is kept",
        patches=((Home, "restore", never_back),),
        killed_by=(partial(placement.a_restored_cache_decodes_the_same, "host"),),
    ),
)
