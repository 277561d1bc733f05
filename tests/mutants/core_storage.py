"""Storages and decode steps that each get one thing wrong."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.cache import plan
from kvbench.cache.codecs.dense import Dense, DensePayload
from kvbench.cache.layer import CacheLayer
from kvbench.cache.plan import LayerPlan
from kvbench.cache.slots import Slots
from kvbench.cache.store import Store
from kvbench.strategies.selection.selector import Protected
from kvbench.types import RunShape
from tests.mutants.core_mutant import Mutant
from tests.support import steps, storage

read, fill, let_go, victims = DensePayload.read, Store.fill, Store._let_go, Protected.victims
put, end_of_pass = Slots.put, CacheLayer._end_of_pass


def sliced(self: Dense, like: Tensor, capacity: int) -> DensePayload:
    """Return a slice of something larger."""
    batch, heads, _, dim = like.shape
    return DensePayload(like.new_zeros(batch, heads, capacity + 8, dim)[:, :, :capacity])


def prompt_kept(self: Store, keys: Tensor, values: Tensor, *more: Any) -> None:
    """Hold on to the whole prompt, and tell nobody."""
    fill(self, keys, values, *more)
    self._whole_prompt = (keys, values)  # type: ignore[attr-defined]


def stored_whole(self: CacheLayer, query: Tensor, keys: Tensor, values: Tensor, position: Tensor, *more: Any) -> None:
    """Store the whole prompt before it is compressed."""
    Slots(self.plan.codec, keys, values, keys.shape[2], heads=1, beside={}).append(keys, values, position)
    end_of_pass(self, query, keys, values, position, *more)


def queries_kept(self: CacheLayer, query: Tensor, *more: Any) -> None:
    """Hold on to the last queries after the prompt's end."""
    end_of_pass(self, query, *more)
    self._last_queries = query[:, :, -1:].clone()


def positions_are_free(self: LayerPlan, run: RunShape, dtype: torch.dtype) -> int:
    """Count keys and values only."""
    return 0


def in_the_models_dtype(dtype: torch.dtype) -> torch.dtype:
    """Keep scores as narrow as the keys."""
    return dtype


def one_more_slot(self: LayerPlan, run: RunShape) -> int:
    """Allocate a slot nobody uses."""
    return max(run.prompt_lengths) + (run.new_tokens or 0) + 1


def read_as_a_copy(self: DensePayload, stop: int, position: Tensor | None = None) -> Tensor:
    """Return a copy of the entries."""
    return read(self, stop).clone()


def read_gathered(self: DensePayload, stop: int, position: Tensor | None = None) -> Tensor:
    """Return the entries gathered by index."""
    return self.data.index_select(2, torch.arange(stop))


def concatenated(
    self: Slots, slot: int, key: Tensor, value: Tensor, position: Any, beside: Mapping[str, Tensor]
) -> None:
    """Make new storage for every entry."""
    put(self, slot, key, value, position, beside)
    assert isinstance(self.keys, DensePayload)
    self.keys.data = torch.cat([self.keys.data[:, :, :slot], key, self.keys.data[:, :, slot + key.shape[2] :]], dim=2)


def looked_at(
    self: Protected, score: Tensor, position: Tensor, newest: Any, recent: Any, out: Tensor, **more: Any
) -> None:
    """Read the victim on the host."""
    victims(self, score, position, newest, recent, out, **more)
    assert out.max().item() >= 0


def now_and_then(self: Store, newest: Any, scale: float) -> None:
    """Do more work at every eighth step."""
    let_go(self, newest, scale)
    if self.seen % 8 == 0:
        self.slots.position.clone()


def made_on_the_host(self: Store, newest: Any, scale: float) -> None:
    """Send a number of the host's to the device."""
    let_go(self, newest, scale)
    torch.tensor([self.seen])


class Moving:
    """Takes new storage for the rows beside the entries at every step."""

    @staticmethod
    def let_go(self: Store, newest: Any, scale: float) -> None:
        """Copy the positions elsewhere."""
        let_go(self, newest, scale)
        self.slots.position = self.slots.position.clone()


def steady(name: str, model: str = "llama_gqa") -> partial[None]:
    """Return the oracle of a decode step, over fewer steps."""
    return partial(steps.steady_decode_does_the_same_in_place, name, model, steps=10)


def bytes_of(name: str, **more: Any) -> partial[None]:
    """Return the byte oracle of a method."""
    return partial(storage.bytes_follow_their_formulas, name, "llama_gqa", **more)


MUTANTS = (
    Mutant(
        name="entries are a slice of something larger",
        patches=((Dense, "empty", sliced),),
        killed_by=(bytes_of("baseline"), bytes_of("snapkv"), bytes_of("sliding_window")),
    ),
    Mutant(
        name="the prompt is kept in secret",
        patches=((Store, "fill", prompt_kept),),
        killed_by=(bytes_of("h2o"), bytes_of("knorm")),
    ),
    Mutant(
        name="the prompt is stored before it is compressed",
        patches=((CacheLayer, "_end_of_pass", stored_whole),),
        killed_by=(partial(storage.a_prompt_at_once_is_never_stored_whole, "snapkv"),),
    ),
    Mutant(
        name="the last queries are kept in secret",
        patches=((CacheLayer, "_end_of_pass", queries_kept),),
        killed_by=(bytes_of("snapkv"),),
    ),
    Mutant(
        name="positions cost nothing",
        patches=((LayerPlan, "_beside_bytes", positions_are_free),),
        killed_by=(
            bytes_of("tova"),
            bytes_of("baseline"),
            partial(storage.byte_budget_is_kept, "knorm", "llama_gqa"),
        ),
    ),
    Mutant(
        name="scores are as narrow as keys",
        patches=((plan, "score_dtype", in_the_models_dtype),),
        killed_by=(bytes_of("h2o", dtype=torch.bfloat16),),
    ),
    Mutant(
        name="a slot is never used",
        patches=((LayerPlan, "capacity", one_more_slot),),
        killed_by=(bytes_of("baseline"), bytes_of("snapkv")),
    ),
    Mutant(
        name="entries are read as a copy",
        patches=((DensePayload, "entries", read_as_a_copy),),
        killed_by=(steady("baseline"), steady("h2o"), steady("attention_sink")),
    ),
    Mutant(
        name="entries are gathered at every step",
        patches=((DensePayload, "entries", read_gathered),),
        killed_by=(steady("sliding_window"), steady("snapkv")),
    ),
    Mutant(
        name="entries are concatenated",
        patches=((Slots, "put", concatenated),),
        killed_by=(steady("baseline"), steady("sliding_window"), steady("attention_sink", "gpt2")),
    ),
    Mutant(
        name="the victim is read on the host",
        patches=((Protected, "victims", looked_at),),
        killed_by=(steady("h2o"), steady("tova"), steady("random_eviction")),
    ),
    Mutant(
        name="a number comes from the host",
        patches=((Store, "_let_go", made_on_the_host),),
        killed_by=(steady("sliding_window"),),
    ),
    Mutant(
        name="every eighth step does more",
        patches=((Store, "_let_go", now_and_then),),
        killed_by=(steady("h2o"), steady("attention_sink")),
    ),
    Mutant(
        name="positions move at every step",
        patches=((Store, "_let_go", Moving.let_go),),
        killed_by=(steady("tova"),),
    ),
)
