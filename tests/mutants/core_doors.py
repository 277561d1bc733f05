"""Doors, chunks, snapshots, growth and loops that each get one thing wrong."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kvbench.cache import store as store_module
from kvbench.cache.doors import Handle
from kvbench.cache.kv_cache import KVCache
from kvbench.cache.layer import CacheLayer
from kvbench.cache.slots import Slots
from kvbench.cache.store import Store
from kvbench.engines.eager import Eager
from kvbench.types import PREFILL
from tests.mutants.core_mutant import Mutant
from tests.mutants.core_scores import under_mask
from tests.support import checks, generation

grow, end_of_pass, prefill = Slots.grow, CacheLayer._end_of_pass, Eager.prefill


def physical_length(self: KVCache, layer_idx: int = 0) -> int:
    """Return what is held instead of what was seen."""
    held = sum(store.slots.filled for _, store in self.layers[layer_idx].stores)
    return min(held, self.layers[layer_idx].seen)


def true_positions(self: KVCache, tokens: int) -> Tensor:
    """Read new tokens at their true position, whatever the model."""
    seen = self.get_seq_length()
    return torch.arange(seen, seen + tokens).expand(self.run.batch_size, -1)


def earlier_queries_forgotten(self: CacheLayer, *args: Any) -> None:
    """Let the last chunk vote alone."""
    self._last_queries = None
    end_of_pass(self, *args)


def earlier_scores_forgotten(self: CacheLayer, *args: Any) -> None:
    """Score the last chunk alone."""
    self._prompt_score = None
    end_of_pass(self, *args)


def restore_counters_only(self: Store, snapshot: Mapping[str, Any]) -> None:
    """Put the counters back and leave the entries as they are."""
    self.seen, self.slots.filled, self.slots.has_holes, self._spare = snapshot["numbers"]
    self._free = snapshot["free"]


def restore_entries_only(self: Store, snapshot: Mapping[str, Any]) -> None:
    """Put the entries back and go on writing where one was."""
    self.seen, self.slots.filled, self.slots.has_holes, self._spare = snapshot["numbers"]
    for mine, old in zip(self.tensors(), snapshot["tensors"], strict=False):
        mine.copy_(old)


def doubled(entries: int) -> int:
    """Grow by as much as there is, and then some."""
    return 2 * entries + 80


def keys_left_behind(self: Slots, capacity: int) -> None:
    """Move to a larger storage without the entries' keys."""
    grow(self, capacity)
    self.keys.write(0, torch.zeros_like(self.keys.read(self.filled)))


def always_a_prompt(
    self: KVCache, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
) -> tuple[Handle, Handle]:
    """Take every pass nobody announced for a prompt."""
    handle = Handle(self.layers[layer_idx], key_states, value_states, self._step or PREFILL)
    return handle, handle


def silent_prompt(self: Eager, model: nn.Module, cache: KVCache, ids: Tensor) -> Tensor:
    """Read the prompt and return nothing of what was said."""
    return torch.zeros_like(prefill(self, model, cache, ids))


MUTANTS = (
    Mutant(
        name="the cache answers with what it holds",
        patches=((KVCache, "get_seq_length", physical_length),),
        killed_by=(
            partial(checks.positions_are_true, "h2o", "llama_gqa"),
            partial(checks.positions_are_true, "sliding_window", "gpt2"),
            under_mask("snapkv"),
            partial(generation.padded_generate_equals_rows_alone, "tova", "llama_gqa"),
        ),
    ),
    Mutant(
        name="learned positions stay true by rank",
        patches=((KVCache, "position_ids", true_positions),),
        killed_by=(checks.learned_positions_are_ranks, under_mask("attention_sink", "gpt2")),
    ),
    Mutant(
        name="earlier chunks do not vote",
        patches=((CacheLayer, "_end_of_pass", earlier_queries_forgotten),),
        killed_by=(partial(checks.chunks_equal_one_shot, "snapkv", "llama_gqa"),),
    ),
    Mutant(
        name="earlier chunks do not add up",
        patches=((CacheLayer, "_end_of_pass", earlier_scores_forgotten),),
        killed_by=(partial(checks.chunks_equal_one_shot, "h2o", "llama_gqa"),),
    ),
    Mutant(
        name="restore leaves the entries",
        patches=((Store, "restore", restore_counters_only),),
        killed_by=(
            partial(checks.restore_is_exact, "h2o", "llama_gqa"),
            partial(checks.restore_is_exact, "sliding_window", "gpt2"),
            partial(checks.restore_is_exact, "tova", "llama_gqa", (24, 15)),
        ),
    ),
    Mutant(
        name="restore leaves the free slot",
        patches=((Store, "restore", restore_entries_only),),
        killed_by=(
            partial(checks.restore_is_exact, "sliding_window", "llama_gqa"),
            partial(checks.restore_is_exact, "attention_sink", "llama_gqa"),
        ),
    ),
    Mutant(
        name="a cache of unknown length doubles",
        patches=((store_module, "grown", doubled),),
        killed_by=(partial(checks.growing_equals_fixed, "snapkv", "llama_gqa"),),
    ),
    Mutant(
        name="growing loses the keys",
        patches=((Slots, "grow", keys_left_behind),),
        killed_by=(partial(checks.growing_equals_fixed, "baseline", "llama_gqa"),),
    ),
    Mutant(
        name="a pass nobody announced is a prompt",
        patches=((KVCache, "update", always_a_prompt),),
        killed_by=(
            partial(checks.begin_is_optional, "h2o", "llama_gqa"),
            partial(generation.generate_equals_our_loop, "h2o", "llama_gqa"),
        ),
        error=ValueError,
    ),
    Mutant(
        name="the loop returns nothing of the prompt",
        patches=((Eager, "prefill", silent_prompt),),
        killed_by=(
            partial(generation.engine_feeds_what_it_is_given, "baseline", "llama_gqa", 0),
            partial(generation.generate_equals_our_loop, "h2o", "llama_gqa"),
        ),
    ),
)
