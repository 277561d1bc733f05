"""Keys that lose channels with one thing wrong each."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.cache import layer as layers
from kvbench.cache.codecs import think as rules
from kvbench.cache.store import Store
from tests.mutants.core_mutant import Mutant
from tests.support import think

choose, fill = rules.ThinKeys._choose, Store.fill


def the_first_ones(self: rules.ThinKeys, keys: Tensor) -> None:
    """Keep the first channels."""
    choose(self, keys)
    self.index.copy_(torch.arange(self.index.shape[2]))


def by_queries_alone(self: rules.ThinKeys, keys: Tensor) -> None:
    """Forget how large keys are."""
    choose(self, torch.ones_like(keys))


def by_one_head(self: rules.ThinKeys, keys: Tensor) -> None:
    """Let the first query head of a KV head choose."""
    assert self._queries is not None
    self._queries = self._queries.unflatten(1, (keys.shape[1], -1))[:, :, 0]
    choose(self, keys)


def of_this_pass(earlier: Any, query: Tensor, count: int) -> Tensor:
    """Forget the queries of earlier passes."""
    return query[:, :, -count:]


def with_padding(
    self: Store, keys: Tensor, values: Tensor, position: Tensor, score: Any, queries: Tensor, *more: Any
) -> None:
    """Let padding ask as well."""
    payload = self.slots.keys
    assert isinstance(payload, rules.ThinKeys)
    ask = payload.ask
    payload.ask = lambda _: ask(queries)  # type: ignore[method-assign, assignment]
    fill(self, keys, values, position, score, queries, *more)


def all_of_them(self: rules.ThinFormat, dim: int) -> int:
    """Keep every channel."""
    return dim


def the_newest_stays(self: rules.ThinFormat, entries: int) -> int:
    """Cut all of a prompt's keys but the newest."""
    return max(0, entries - 1)


def all_the_room(self: rules.ThinFormat, capacity: int) -> int:
    """Have room for as many whole keys as there can be, however few there are."""
    return self.rule.window + 1


def made_wide(self: rules.Thinned, rows: Tensor) -> Tensor:
    """Make keys as wide as they were."""
    size = (*self.numbers.shape[:3], rows.shape[3])
    at = self.index[:, :, None].expand_as(self.numbers)
    wide = self.numbers.new_zeros(size).scatter(3, at, self.numbers)
    return torch.cat([torch.matmul(rows, wide.mT), self.whole.logits(rows)], dim=3)


def not_gathered(self: rules.Thinned, rows: Tensor) -> Tensor:
    """Take the first channels of the query."""
    asked = rows[..., : self.numbers.shape[3]]
    return torch.cat([torch.matmul(asked, self.numbers.mT), self.whole.logits(rows)], dim=3)


_CHOSEN = partial(think.channels_are_those_of_the_largest_products, "llama_gqa")
_HOLES = partial(think.logits_are_those_of_keys_with_holes, "llama_gqa")

MUTANTS = (
    Mutant(
        name="the first channels are kept",
        patches=((rules.ThinKeys, "_choose", the_first_ones),),
        killed_by=(_HOLES, _CHOSEN),
    ),
    Mutant(
        name="the size of keys does not matter",
        patches=((rules.ThinKeys, "_choose", by_queries_alone),),
        killed_by=(_CHOSEN,),
    ),
    Mutant(
        name="one query head of a KV head asks",
        patches=((rules.ThinKeys, "_choose", by_one_head),),
        killed_by=(_CHOSEN,),
    ),
    Mutant(
        name="queries of earlier passes are forgotten",
        patches=((layers, "latest", of_this_pass),),
        killed_by=(_CHOSEN,),
    ),
    Mutant(
        name="padding asks",
        patches=((Store, "fill", with_padding),),
        killed_by=(think.padding_does_not_ask,),
    ),
    Mutant(
        name="every channel is kept",
        patches=((rules.ThinFormat, "channels", all_of_them),),
        killed_by=(think.channels_are_freed_to_the_byte,),
    ),
    Mutant(
        name="one key stays whole",
        patches=((rules.ThinFormat, "thin", the_newest_stays),),
        killed_by=(think.the_latest_keys_are_whole,),
    ),
    Mutant(
        name="few entries have room for many",
        patches=((rules.ThinFormat, "whole", all_the_room),),
        killed_by=(think.channels_are_freed_to_the_byte,),
    ),
    Mutant(
        name="keys are made as wide as they were",
        patches=((rules.Thinned, "logits", made_wide),),
        killed_by=(think.a_step_copies_no_keys,),
    ),
    Mutant(
        name="queries keep their first channels",
        patches=((rules.Thinned, "logits", not_gathered),),
        killed_by=(partial(think.logits_are_those_of_keys_with_holes, "gpt2", "snapkv"),),
    ),
)
