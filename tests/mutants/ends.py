"""Exact entries at both ends with one thing wrong each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kvbench.cache.codecs.ends import EndsFormat, EndsPayload
from kvbench.cache.codecs.latent import Latent
from kvbench.kernels.packed import Rows
from tests.mutants.core_mutant import Mutant
from tests.support import ends

write, settle, entries, restore = EndsPayload.write, EndsPayload.settle, EndsPayload.entries, EndsPayload.restore
allocated_bytes = EndsFormat.allocated_bytes


def at_another_place(self: EndsPayload, position: Tensor) -> None:
    """Take the newest token's position for that of the one that leaves."""
    settle(self, position.roll(1, dims=2))


def settled_at_once(self: EndsPayload, start: int, given: Tensor, position: Any = None) -> None:
    """Write a token when it comes, too."""
    write(self, start, given, position)
    behind = start - self.first.shape[2]
    if given.shape[2] == 1 and 0 <= behind < self.inner.capacity:
        self.inner.write(behind, given, position)


def again(self: EndsPayload, position: Tensor) -> None:
    """Write earlier tokens again whenever one leaves."""
    before = self.written
    settle(self, position)
    if self.written > before > 0:
        first = self.first.shape[2]
        now = position[:, :, first : first + before]
        self.inner.write(0, -self.inner.read(before, position[:, :, first:]), now)


def one_early(self: EndsFormat, given: int) -> int:
    """Let the last token of the window go with a prompt."""
    return max(0, given - self.num_sink - self.window + 1)


def in_storage_order(self: EndsPayload, stop: int, position: Tensor) -> Rows:
    """Read the ring as it lies."""
    made = entries(self, stop, position)
    ring = self.latest.untyped_storage().data_ptr()
    mine = [p for p in made.parts if isinstance(p, Tensor) and p.untyped_storage().data_ptr() == ring]
    others = [p for p in made.parts if not any(p is each for each in mine)]
    return Rows([*others, *mine[::-1]], made.dtype)


def without_a_spare_row(self: EndsFormat, heads: int, dim: int, capacity: int, dtype: torch.dtype) -> int:
    """Forget the row of the token that is about to leave."""
    return allocated_bytes(self, heads, dim, capacity, dtype) - heads * dim * dtype.itemsize * (self.window > 0)


def ring_as_it_is(self: EndsPayload, snapshot: object) -> None:
    """Go back in numbers only."""
    latest = self.latest.clone()
    restore(self, snapshot)
    self.latest.copy_(latest)


MUTANTS = (
    Mutant(
        name="a token is written at another one's position",
        patches=((EndsPayload, "settle", at_another_place),),
        killed_by=(ends.the_first_and_the_latest_are_exact,),
    ),
    Mutant(
        name="tokens of the window are written as well",
        patches=((EndsPayload, "write", settled_at_once),),
        killed_by=(ends.a_token_is_written_once,),
    ),
    Mutant(
        name="earlier tokens are written again",
        patches=((EndsPayload, "settle", again),),
        killed_by=(ends.a_token_is_written_once, ends.the_first_and_the_latest_are_exact),
    ),
    Mutant(
        name="room for one more than leaves",
        patches=((EndsFormat, "written", one_early),),
        killed_by=(ends.bytes_are_those_of_codes_and_exact_entries,),
    ),
    Mutant(
        name="the window is read in the order of its storage",
        patches=((EndsPayload, "entries", in_storage_order),),
        killed_by=(ends.the_first_and_the_latest_are_exact,),
    ),
    Mutant(
        name="the row of what is about to leave is free",
        patches=((EndsFormat, "allocated_bytes", without_a_spare_row),),
        killed_by=(ends.bytes_are_those_of_codes_and_exact_entries,),
    ),
    Mutant(
        name="the window is not taken back",
        patches=((EndsPayload, "restore", ring_as_it_is),),
        killed_by=(ends.what_came_later_can_be_taken_back,),
    ),
    Mutant(
        name="products forget where keys are",
        patches=((Latent, "logits", lambda self, rows, out: out.zero_()),),
        killed_by=(ends.attention_is_that_on_what_is_read,),
    ),
)
