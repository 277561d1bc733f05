"""Requests that get one thing wrong."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from kvbench.types import Request, RunShape
from kvbench.workloads import pieces, traces
from kvbench.workloads.pieces import Planned
from kvbench.workloads.requests import Requests
from kvbench.workloads.source import TokenSource
from tests.mutants.core_mutant import Mutant
from tests.support import requests

REAL_SLICE, REAL_WALK, REAL_ARRIVALS, REAL_LENGTHS = (
    pieces._Tree._slice,
    pieces._Tree.walk,
    Requests._arrivals,
    Requests._lengths,
)
REAL_LEAVES, REAL_RUNS, REAL_PLANNED, REAL_ENTRY = (
    Requests._leaves,
    Requests.runs,
    Requests._planned,
    traces._Entry.planned,
)


def beginning_alike(self: Any, node: int, tokens: int) -> list[int]:
    """Take the text as it comes."""
    self._begun.clear()
    return REAL_SLICE(self, node, tokens)


def from_the_beginning(self: Any, node: int, tokens: int) -> list[int]:
    """Read the text anew for each piece."""
    self._ids = iter(self._source.text or range(self._source.vocabulary))
    return REAL_SLICE(self, node, tokens)


def sharing_nothing(self: Any, walked: Sequence[pieces.Piece], node: int) -> tuple[list[int], int]:
    """Write every piece anew."""
    self._written.clear()
    return REAL_WALK(self, walked, node)


def named_anywhere(self: Any, walked: Sequence[pieces.Piece], node: int) -> tuple[list[int], int]:
    """Tell a piece by its name alone."""
    out: list[int] = []
    for piece in walked:
        out += REAL_WALK(self, [piece], 0)[0]
    return out, node


def without_its_prefix(planned: Sequence[Planned], source: TokenSource) -> list[Request]:
    """Forget the tokenizer's own tokens."""
    return REAL_WRITE(planned, replace(source, prefix=()))


def with_the_request_before(made: Sequence[Request]) -> float:
    """Compare each prompt with the one before it alone."""
    prompts = requests.known(made)
    shared = sum(requests.in_common(one, other) for one, other in pairwise(prompts))
    return sum(map(len, prompts)) / (sum(map(len, prompts)) - shared)


def in_turn(self: Requests, count: int) -> list[int]:
    """Know one order."""
    return REAL_LEAVES(replace(self, order="interleaved"), count)


def evenly(self: Requests, count: int) -> list[float]:
    """Arrive like a clock."""
    return [(chat + 1) / self.rate_per_s for chat in range(count)]


def twice_as_fast(self: Requests, count: int) -> list[float]:
    """Arrive at another rate."""
    return [at / 2 for at in REAL_ARRIVALS(self, count)]


def one_by_one(self: Requests, count: int) -> list[float]:
    """Know no bursts."""
    return REAL_ARRIVALS(replace(self, arrival="poisson"), count)


def half_as_far(self: Requests, what: str, mean: int, spread: float, count: int) -> list[int]:
    """Vary less than asked."""
    return REAL_LENGTHS(self, what, mean, spread / 2, count)


def without_what_is_generated(self: Requests) -> list[RunShape]:
    """Count what was said alone."""
    (run,) = REAL_RUNS(self)
    lengths = [len(prompt) for prompt in requests.known(self.requests(requests.source()))]
    return [replace(run, prompt_lengths=tuple(lengths))]


def after_the_first_turn(self: Requests) -> list[Planned]:
    """Let every turn wait for the first of its conversation."""
    count = self.num_requests // self.turns
    return [one if one.follows is None else replace(one, follows=one.follows % count) for one in REAL_PLANNED(self)]


def of_no_seed(self: Requests, what: str) -> random.Random:
    """Draw the same whatever the seed."""
    return random.Random(what)


def of_one_stream(self: Requests, what: str) -> random.Random:
    """Draw everything from one stream."""
    stream: random.Random = self.__dict__.setdefault("stream", random.Random(self.seed))
    return stream


def in_seconds(self: Any, number: int, start_s: float, **scales: float) -> Planned:
    """Take milliseconds for seconds."""
    return REAL_ENTRY(self, number, start_s, **scales | {"time_scale": scales["time_scale"] * 1000})


def since_the_epoch(self: Any, number: int, start_s: float, **scales: float) -> Planned:
    """Leave times as they are."""
    return REAL_ENTRY(self, number, 0.0, **scales)


def as_long_as_ever(self: Any, number: int, start_s: float, **scales: float) -> Planned:
    """Leave lengths as they are."""
    return REAL_ENTRY(self, number, start_s, **scales | {"length_scale": 1.0})


def of_whole_blocks(self: Any, number: int, start_s: float, **scales: float) -> Planned:
    """Fill the last block."""
    found = REAL_ENTRY(self, number, start_s, **scales)
    return replace(found, prompt_tokens=sum(tokens for _, tokens in found.pieces))


REAL_WRITE = pieces.write
TREE, MOONCAKE = requests.the_tree_has_the_size_that_the_settings_say, requests.a_mooncake_trace_is_what_it_says_by_hand
AZURE = requests.an_azure_trace_is_what_it_says_by_hand
ARRIVALS = requests.arrivals_have_no_memory_and_the_rate_asked_for
ORDER = requests.conversations_come_in_the_order_asked_for
BURSTS, SEED = requests.bursts_come_together_at_the_same_rate, requests.the_same_seed_means_the_same_requests

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="prompts part later than the settings say",
        patches=((pieces._Tree, "_slice", beginning_alike),),
        killed_by=(TREE, ORDER),
    ),
    Mutant(
        name="the text is read again and again",
        patches=((pieces._Tree, "_slice", from_the_beginning),),
        killed_by=(requests.a_text_is_read_once_from_its_beginning,),
    ),
    Mutant(
        name="nothing is shared",
        patches=((pieces._Tree, "walk", sharing_nothing),),
        killed_by=(TREE, ORDER, MOONCAKE),
    ),
    Mutant(
        name="a block is its id, whatever comes before",
        patches=((pieces._Tree, "walk", named_anywhere),),
        killed_by=(MOONCAKE,),
    ),
    Mutant(
        name="the prefix is forgotten",
        patches=((pieces, "write", without_its_prefix),),
        killed_by=(TREE, MOONCAKE),
    ),
    Mutant(
        name="what is shared is that of neighbours",
        patches=((pieces, "sharing", with_the_request_before),),
        killed_by=(TREE,),
    ),
    Mutant(name="all orders are one", patches=((Requests, "_leaves", in_turn),), killed_by=(ORDER,)),
    Mutant(name="arrivals are regular", patches=((Requests, "_arrivals", evenly),), killed_by=(ARRIVALS, BURSTS)),
    Mutant(name="the rate is another", patches=((Requests, "_arrivals", twice_as_fast),), killed_by=(ARRIVALS, BURSTS)),
    Mutant(name="nothing comes together", patches=((Requests, "_arrivals", one_by_one),), killed_by=(BURSTS,)),
    Mutant(
        name="lengths vary half as far",
        patches=((Requests, "_lengths", half_as_far),),
        killed_by=(requests.lengths_vary_as_far_as_asked,),
    ),
    Mutant(
        name="what is generated is not read again",
        patches=((Requests, "runs", without_what_is_generated),),
        killed_by=(requests.rows_are_as_long_as_what_a_request_reads,),
    ),
    Mutant(
        name="turns wait for the first",
        patches=((Requests, "_planned", after_the_first_turn),),
        killed_by=(requests.turns_follow_their_own_conversation, TREE),
    ),
    Mutant(name="the seed is ignored", patches=((Requests, "_rng", of_no_seed),), killed_by=(SEED,)),
    Mutant(name="one draw moves the others", patches=((Requests, "_rng", of_one_stream),), killed_by=(SEED,)),
    Mutant(
        name="milliseconds are seconds",
        patches=((traces._Entry, "planned", in_seconds),),
        killed_by=(MOONCAKE, AZURE),
    ),
    Mutant(
        name="time begins long ago",
        patches=((traces._Entry, "planned", since_the_epoch),),
        killed_by=(MOONCAKE, AZURE),
    ),
    Mutant(
        name="lengths are not scaled",
        patches=((traces._Entry, "planned", as_long_as_ever),),
        killed_by=(MOONCAKE, AZURE),
    ),
    Mutant(
        name="the last block is whole",
        patches=((traces._Entry, "planned", of_whole_blocks),),
        killed_by=(MOONCAKE,),
    ),
)
