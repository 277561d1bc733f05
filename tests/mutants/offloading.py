"""Broken rings, broken returns, and the checks that have to fail on them."""

from __future__ import annotations

import copy
import os
from functools import partial

import torch
from omegaconf import DictConfig
from torch import Tensor

from kvbench.cache.offloading import Offloading
from kvbench.cache.ring import Form, Ring, Rows
from kvbench.cache.slots import Slots
from kvbench.cache.views import Leaving, Merged
from kvbench.configuration import Checked, check
from kvbench.kernels.attend import EMPTY
from kvbench.strategies.evicted.offloaded import Offloaded
from kvbench.strategies.evicted.summary import Summary
from kvbench.strategies.selection.call_attention import CallAttention
from tests.mutants.core_mutant import Mutant
from tests.support import fsdc, offloading
from tests.support.offloading import LOW

place, push, down = Ring._place, Ring.push, Offloading._down
weakest, candidates, put_back, remembered = (
    Offloading._weakest,
    Offloading._candidates,
    Offloading._put_back,
    Offloading._remembered,
)


def last_in_first_out(self: Ring, position: Tensor) -> tuple[Tensor, Tensor]:
    """Let the newest row give way once all places are taken."""
    _, falls = place(self, position)
    is_full = (self.arrival >= 0).all(dim=1)
    return torch.where(is_full, self.arrival.argmax(dim=1), self.arrival.argmin(dim=1)), falls


def packed_again(self: Ring, position: Tensor) -> tuple[Tensor, Tensor]:
    """Forget where a row was before it came back."""
    self.position[self.position == position[:, None]] = EMPTY
    return place(self, position)


def nothing_is_lent(self: Ring, sets: Tensor, where: Tensor) -> None:
    """Leave the row of an entry that is back among those that are nowhere else."""


def lent_and_lost(self: Ring, sets: Tensor, where: Tensor) -> None:
    """Lose the codes of an entry that is back."""
    self.position[sets, where], self.arrival[sets, where] = EMPTY, -1


def nothing_falls(self: Ring, rows: Rows, *, catches: bool) -> list[Rows]:
    """Let rows fall off without a trace."""
    push(self, rows, catches=False)
    return []


def everything_summed(self: Offloaded, leaving: Leaving) -> Merged:
    """Sum up what the ring keeps, too."""
    return Summary(mode="mean").begin(leaving, leaving.gone())


def any_weak(self: Offloading, slots: Slots, victims: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Let whatever mattered give way, and say that it did not matter."""
    mattered, slot = weakest(self, slots, victims, most)
    return torch.where(mattered.isinf(), mattered, mattered - 1), slot


def the_victim_again(self: Offloading, slots: Slots, victims: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Let the victim give way a second time."""
    return weakest(self, slots, victims[:, :, :0], most)


def whatever_matters(self: Offloading) -> Tensor:
    """Let rows come back whose entries are back already, and those below the threshold."""
    assert self._scorer is not None
    mattered = self._scorer.importance(self.ring.beside["memory"])
    return mattered.masked_fill(self.ring.position < 0, -torch.inf)


def oldest_first(self: Offloading) -> Tensor:
    """Let the entry that left first come back first."""
    found = candidates(self)
    return torch.where(found > -torch.inf, 100.0 - self.ring.arrival, found)


def rounded(self: Offloading, slots: Slots, slot: Tensor, sets: Tensor, rank: Tensor, where: Tensor) -> None:
    """Bring rows back with a little less than they had."""
    put_back(self, slots, slot, sets, rank, where)
    at = slot[sets, rank]
    data = slots.keys.data.unflatten(1, (slots.position.shape[1], -1)).flatten(0, 1)  # type: ignore[attr-defined]
    data[sets, :, at] *= 1 - 2**-5


def a_sum_of_the_prompt(self: Offloading, score: Tensor, position: Tensor) -> Tensor:
    """Take the attention summed over a prompt for a mean."""
    return remembered(self, score * (self.run.prompt_tokens - position), position)


def all_of_it(self: Offloading, rows: Rows, *, blocking: bool = False) -> Rows:
    """Send what lies on the host once more."""
    self._moved.down += self.ring.position.nbytes
    return down(self, rows, blocking=blocking)


def not_waited_for(self: Offloading) -> list[Rows]:
    """Go on while rows are being written."""
    writing, self._writing = self._writing, None
    return writing.result() if writing is not None and writing.done() else []


def forgetful(self: CallAttention, memory: Tensor) -> Tensor:
    """Let entries matter by the number of their calls."""
    return memory.view(torch.float32)[..., 1] / 100


def bytes_of_numbers(self: Form) -> int:
    """Count every row as the model made it."""
    return self.sets * self.heads * self.rows * sum(self.widths) * self.dtype.itemsize


def environment_last(config: DictConfig) -> Checked:
    """Let the environment win over the command line."""
    config = copy.deepcopy(config)
    if "FSDC_WORKER_THREADS" in os.environ:
        config.strategy.evicted.worker_threads = int(os.environ["FSDC_WORKER_THREADS"])
    return check(config)


def _loops(*overrides: str) -> partial[None]:
    return partial(offloading.offloading_equals_plain_loops, LOW, *overrides)


LOOPS, SMALL = _loops(), _loops("evicted.offload_size=5")
SUMMED = _loops("evicted.summary=true", "evicted.offload_size=9")
ONCE = partial(offloading.every_position_is_somewhere_once, "evicted.offload_size=11")
EXACT, INT4 = (partial(offloading.rows_are_what_they_were, f"fixed_size_{name}") for name in ("offload", "int4"))
MATTERED, RING = offloading.an_entry_that_mattered_comes_back, offloading.a_ring_is_first_in_first_out

MUTANTS = (
    Mutant(name="last in, first out", patches=((Ring, "_place", last_in_first_out),), killed_by=(RING, SMALL)),
    Mutant(name="rows are packed again", patches=((Ring, "_place", packed_again),), killed_by=(RING,)),
    Mutant(name="codes of what is back are lost", patches=((Ring, "lend", lent_and_lost),), killed_by=(RING,)),
    Mutant(name="entries are in two places", patches=((Ring, "lend", nothing_is_lent),), killed_by=(ONCE, SMALL, RING)),
    Mutant(name="what falls off is lost", patches=((Ring, "push", nothing_falls),), killed_by=(ONCE, SUMMED)),
    Mutant(
        name="the ring is summed up, too",
        patches=((Offloaded, "at_prompt_end", everything_summed),),
        killed_by=(ONCE, SUMMED),
    ),
    Mutant(name="what matters gives way", patches=((Offloading, "_weakest", any_weak),), killed_by=(LOOPS,)),
    Mutant(
        name="a victim leaves twice", patches=((Offloading, "_weakest", the_victim_again),), killed_by=(LOOPS, ONCE)
    ),
    Mutant(name="no threshold", patches=((Offloading, "_candidates", whatever_matters),), killed_by=(MATTERED, LOOPS)),
    Mutant(
        name="the oldest comes first",
        patches=((Offloading, "_candidates", oldest_first),),
        killed_by=(MATTERED, LOOPS),
    ),
    Mutant(
        name="rows come back rounded", patches=((Offloading, "_put_back", rounded),), killed_by=(EXACT, INT4, LOOPS)
    ),
    Mutant(name="a sum for a mean", patches=((Offloading, "_remembered", a_sum_of_the_prompt),), killed_by=(LOOPS,)),
    Mutant(name="calls for attention", patches=((CallAttention, "importance", forgetful),), killed_by=(LOOPS,)),
    Mutant(
        name="the ring goes down again",
        patches=((Offloading, "_down", all_of_it),),
        killed_by=(offloading.what_goes_down_does_not_depend_on_the_context,),
    ),
    Mutant(
        name="nobody waits for what is written",
        patches=((Offloading, "_settle", not_waited_for),),
        killed_by=(offloading.threads_change_nothing,),
    ),
    Mutant(
        name="codes count as numbers",
        patches=((Form, "written_bytes", property(bytes_of_numbers)),),
        killed_by=(partial(offloading.bytes_of_the_ring, "fixed_size_int8"),),
    ),
    Mutant(
        name="the environment wins over the command line",
        patches=((fsdc, "check", environment_last),),
        killed_by=(fsdc.the_environment_gives_way,),
    ),
)
