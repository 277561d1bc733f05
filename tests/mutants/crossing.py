"""Blocks that read a context with one thing wrong each."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kvbench.cache.context import ContextLayer, ForgettingLayer
from kvbench.cache.kv_cache import KVCache
from kvbench.cache.layer import CacheLayer
from kvbench.models import crossing as models
from kvbench.models.crossing import Crossing, Crossings, Handed, Places
from kvbench.strategies.transform import crossing as transform
from kvbench.strategies.transform.crossing import Crossed
from kvbench.train_crossings import Read
from kvbench.types import ModelView, Part, RunShape
from tests.mutants.core_mutant import Mutant
from tests.support import crossing

forward, draw = Crossing.forward, Crossings.draw
read, cross = ContextLayer.read, ContextLayer.cross
alone = partial(crossing.blocks_that_add_nothing_leave_the_model_to_what_follows, lengths=(24, 17))
bytes_of_blocks = partial(crossing.bytes_are_those_of_the_blocks, "llama_gqa")


def true_positions(self: KVCache, tokens: int) -> Tensor:
    """Read what follows where it stands."""
    return torch.arange(self.get_seq_length(), self.get_seq_length() + tokens).expand(self.run.batch_size, -1)


def not_rotated(self: ContextLayer, rows: Tensor, at: Tensor) -> Tensor:
    """Say nothing of positions."""
    return rows


def emptied(self: ContextLayer, key: Tensor, value: Tensor, *, is_last: bool) -> None:
    """Keep nothing of values that are packed."""
    read(self, key, value if self.plan.codec.is_exact else 0 * value, is_last=is_last)


def standing(self: ContextLayer, query: Tensor, scale: float) -> Tensor:
    """Ask everything from the first position behind the context."""
    out, self.seen = cross(self, query, scale), self.run.prompt_tokens
    return out


def made_again(self: Crossing, hidden: Tensor, reader: Any) -> Tensor:
    """Make keys in every step."""
    self.k_proj(torch.zeros(1, 1, self.k_proj.in_features, dtype=hidden.dtype))
    return forward(self, hidden, reader)


def whole(self: RunShape, part: Part) -> RunShape:
    """Leave room for everything everywhere."""
    return self


def in_halves(self: KVCache, encoding: Tensor, pairs: Any) -> None:
    """Count half of what is encoded."""
    keep(self, encoding, pairs)
    self.encoding_bytes -= encoding.nbytes // 2


def one_more(self: Crossed, view: ModelView) -> tuple[int, int]:
    """Have a block too many."""
    blocks, width = sizes(self, view)
    return blocks + 1, width


def of_the_model(self: Crossed, view: ModelView) -> ModelView:
    """Say that every layer stores everything."""
    return view


def of_nobody(self: Crossed, view: ModelView) -> Path | None:
    """Find no trained blocks."""
    return None


def as_if_trained(self: Crossings, seed: int) -> None:
    """Say that random weights were trained."""
    draw(self, seed)
    self.is_trained = True


def copied(module: nn.Module, changes: Mapping[str, nn.Module]) -> nn.Module:
    """Share nothing."""
    return copy.deepcopy(module)


def plain(pair: tuple[Tensor, Tensor], rotary: Tensor | None) -> Read:
    """Train without positions."""
    return Read(key=pair[0], value=pair[1], rotary=None)


def of_nothing(handed: Handed, block: Any, index: int, layer: Any, arguments: Any, hidden: Tensor) -> Any:
    """Have blocks add what they make of no context."""
    return block(hidden, Nothing() if handed.readers is None else handed.readers[index])


class Nothing:
    """No context."""

    def cross(self, query: Tensor, scale: float) -> Tensor:
        """Return zeros."""
        return torch.zeros_like(query)


def stays_there(self: ContextLayer, snapshot: Mapping[str, object]) -> None:
    """Go back to nothing."""


def newest(self: CacheLayer, query: Tensor, scale: float) -> Tensor:
    """Read the last token of the context alone."""
    ((_, store),) = self.stores
    values = store.slots.values.read(store.slots.filled)[:, :, -1:]
    return values.repeat_interleave(query.shape[1] // values.shape[1], dim=1)


def behind_the_last(said: Mapping[str, str]) -> Places:
    """Put all blocks where they stand untrained."""
    return Places.spread(int(said["blocks"]), 2)


def of_the_last_layer(self: Crossings, hidden: Tensor) -> Tensor:
    """Take what is encoded for normalised."""
    encoding: Tensor = self.encoder(hidden)
    return encoding


keep, sizes = KVCache.keep_context, Crossed.sizes

MUTANTS = (
    Mutant(
        name="what follows is read at its true position",
        patches=((KVCache, "position_ids", true_positions),),
        killed_by=(partial(alone, "gpt2"),),
    ),
    Mutant(
        name="the prompt is not forgotten",
        patches=((ForgettingLayer, "_end_of_pass", CacheLayer._end_of_pass),),
        killed_by=(partial(alone, "llama_gqa"),),
    ),
    Mutant(
        name="contexts have no positions",
        patches=((ContextLayer, "_rotated", not_rotated),),
        killed_by=(
            partial(crossing.context_is_read_as_by_plain_loops, "llama_gqa"),
            partial(crossing.what_is_trained_is_what_runs, "llama_gqa"),
        ),
    ),
    Mutant(
        name="all queries ask from one position",
        patches=((ContextLayer, "cross", standing),),
        killed_by=(partial(crossing.context_is_read_as_by_plain_loops, "llama_gqa"),),
    ),
    Mutant(
        name="only the newest token is read",
        patches=((CacheLayer, "look", newest),),
        killed_by=(partial(crossing.context_is_read_as_by_plain_loops, "gpt2"),),
    ),
    Mutant(
        name="keys are made again",
        patches=((Crossing, "forward", made_again),),
        killed_by=(crossing.keys_are_made_once,),
    ),
    Mutant(
        name="blocks add something without a context",
        patches=((models, "_cross", of_nothing),),
        killed_by=(partial(crossing.without_a_context_nothing_is_added, "llama_gqa"),),
    ),
    Mutant(
        name="there is room for everything everywhere",
        patches=((RunShape, "of", whole),),
        killed_by=(bytes_of_blocks,),
    ),
    Mutant(
        name="half of the encoding is counted",
        patches=((KVCache, "keep_context", in_halves),),
        killed_by=(bytes_of_blocks,),
    ),
    Mutant(
        name="a block too many",
        patches=((Crossed, "sizes", one_more),),
        killed_by=(crossing.sizes_follow_the_ratio,),
    ),
    Mutant(
        name="shapes are those of before",
        patches=((Crossed, "shapes", of_the_model),),
        killed_by=(partial(crossing.shapes_are_known_before, "llama_gqa"),),
    ),
    Mutant(
        name="what is packed is lost",
        patches=((ContextLayer, "read", emptied),),
        killed_by=(partial(crossing.contexts_go_with_codecs, "int8", 0.02),),
    ),
    Mutant(
        name="contexts do not go back",
        patches=((ContextLayer, "restore", stays_there),),
        killed_by=(crossing.restore_goes_back_exactly,),
    ),
    Mutant(
        name="training knows no positions",
        patches=((Read, "of", staticmethod(plain)),),
        killed_by=(partial(crossing.what_is_trained_is_what_runs, "llama_gqa"),),
    ),
    Mutant(
        name="blocks stand where they would untrained",
        patches=((transform, "places_in", behind_the_last),),
        killed_by=(crossing.blocks_stand_where_they_were_trained,),
    ),
    Mutant(
        name="what is encoded is not normalised",
        patches=((Crossings, "encode", of_the_last_layer),),
        killed_by=(crossing.blocks_stand_where_they_were_trained,),
    ),
    Mutant(
        name="trained blocks are not found",
        patches=((Crossed, "trained", of_nobody),),
        killed_by=(crossing.trained_blocks_are_found,),
    ),
    Mutant(
        name="random weights count as trained",
        patches=((Crossings, "draw", as_if_trained),),
        killed_by=(crossing.untrained_blocks_are_asked_nothing,),
    ),
    Mutant(
        name="nothing is shared",
        patches=((transform, "with_modules", copied),),
        killed_by=(crossing.only_blocks_are_trained,),
    ),
)
