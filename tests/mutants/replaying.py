"""Recorded steps that each get one thing wrong."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from kvbench.cache.clock import Clock
from kvbench.cache.codecs.opened import OpenPayload, OpenRows
from kvbench.cache.kv_cache import KVCache
from kvbench.cache.replayed import ReplayedStore
from kvbench.cache.store import Store
from kvbench.strategies.selection import persistence
from tests.mutants.core_mutant import Mutant
from tests.support import replaying as support
from tests.support.replaying import FILLS, KEEPS
from tests.support.strategies import every, strategy

opened = ReplayedStore._open


def _replays(name: str, tokens: int, *overrides: str) -> None:
    support.replays_are_eager_steps(strategy(name, *overrides, tokens=tokens), "llama_gqa")


FULL, RING, SCORED = (partial(_replays, name, KEEPS) for name in ("baseline", "attention_sink", "h2o"))
FILLED = partial(_replays, "h2o", FILLS)
TOGETHER = partial(_replays, "h2o", KEEPS, *every(4))
GATHERED = partial(_replays, "kivi2", KEEPS)
FORGETTING = partial(_replays, "scissorhands", KEEPS, "scorer.history=5")
AGAIN = partial(_replays, "rkv", KEEPS)


scatter = OpenPayload.scatter


def fixed_boundary(self: OpenPayload, slot: Tensor, entry: Tensor, position: Tensor | int | None = None) -> None:
    """Find what is exact by what the host knows."""
    packed = self.inner.packed
    scatter(self, slot, entry, position)
    self._first = torch.full_like(self._first, packed)


def codes_of_exact_entries_too(self: OpenRows, weights: Tensor) -> Tensor:
    """Add what lies where entries will be packed."""
    return weighted(replace(self, first=self.first + len(self.slots)), weights)


weighted = OpenRows.weighted


def a_number_of_the_host(self: Clock, seen: int) -> Tensor:
    """Say what the host knows, as a number that is recorded."""
    return torch.full_like(self.now, seen)


def nothing_hidden(self: ReplayedStore) -> None:
    """Read empty slots as well."""
    opened(self)
    self.slots.has_holes = False


def victims_first(self: ReplayedStore, newest: Tensor | int, scale: float) -> None:
    """Let an entry go although there is room."""
    self._choose_free(newest, scale)


def bits_stay(memory: Tensor, below: Tensor, slot: Tensor) -> Tensor:
    """Write a step's bits beside those of the step that is forgotten."""
    before = memory.clone()
    forgotten = note_at(memory, below, slot)
    memory.bitwise_or_(before)
    return forgotten


note_at = persistence._note_at

MUTANTS = (
    Mutant(name="the clock stands still", patches=((Clock, "set", lambda self, seen: None),), killed_by=(FULL, RING)),
    Mutant(name="the host's clock", patches=((Clock, "at", a_number_of_the_host),), killed_by=(FULL, RING)),
    Mutant(name="tokens are not counted", patches=((KVCache, "skip", lambda self: None),), killed_by=(FULL, SCORED)),
    Mutant(name="empty slots are read", patches=((ReplayedStore, "_open", nothing_hidden),), killed_by=(FULL,)),
    Mutant(
        name="going back leaves what is empty as it is",
        patches=((ReplayedStore, "_changing", Store._changing),),
        killed_by=(FULL,),
    ),
    Mutant(name="entries leave too early", patches=((ReplayedStore, "_let_go", victims_first),), killed_by=(FILLED,)),
    Mutant(name="the host's boundary", patches=((OpenPayload, "scatter", fixed_boundary),), killed_by=(GATHERED,)),
    Mutant(
        name="packed entries are not counted",
        patches=((OpenPayload, "skip", lambda self: None),),
        killed_by=(GATHERED,),
    ),
    Mutant(
        name="weights of what is exact fall on codes",
        patches=((OpenRows, "weighted", codes_of_exact_entries_too),),
        killed_by=(GATHERED,),
    ),
    Mutant(name="forgotten bits stay", patches=((persistence, "_note_at", bits_stay),), killed_by=(FORGETTING,)),
    Mutant(name="queries in one place", patches=((ReplayedStore, "_note", Store._note),), killed_by=(AGAIN,)),
    Mutant(name="all steps are alike", patches=((KVCache, "kind", property(lambda self: ())),), killed_by=(TOGETHER,)),
)
