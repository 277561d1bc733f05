"""ShadowKV with one thing done wrong."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.cache import low_rank
from kvbench.cache.codecs.moments import main_directions
from kvbench.cache.far import Far
from kvbench.cache.landmarks import LandmarkPaging, Landmarks
from kvbench.cache.low_rank import LowRankKeys
from kvbench.cache.pages import Paging
from kvbench.cache.placement.levels import Level
from kvbench.cache.views import Leaving, PromptView
from kvbench.strategies.selection.chunk_outlier import ChunkOutlier
from kvbench.strategies.selection.selector import Protected
from kvbench.strategies.selection.whole_chunks import WholeChunks
from tests.mutants.core_mutant import Mutant
from tests.mutants.far import hands_down_again
from tests.support import shadow

put, at, take, prompt, read, directions = (
    Landmarks.put,
    LowRankKeys.at,
    LowRankKeys.take,
    ChunkOutlier.prompt,
    Far._read,
    main_directions,
)


def first_key(self: Landmarks, first: int, keys: Tensor, score: Tensor) -> None:
    """Let the first key of a chunk stand for it."""
    put(self, first, keys[:, :, :, :1], score)


def sum_over_queries(self: Landmarks, query: Tensor, among: int, most: int) -> Tensor:
    """Add the logits of the queries of a KV head."""
    means = self._rows[:, :, :among]
    summed = query.unflatten(1, (means.shape[1], -1)).sum(dim=2)
    return torch.matmul(means, summed.transpose(-1, -2))[..., 0].topk(most, dim=-1).indices


def smallest_first(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the directions along which keys are smallest."""
    squares, found = directions(moments)
    return squares.flip(1), found.flip(2)


def first_row_for_all(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Give all rows the first one's directions."""
    squares, found = directions(moments)
    return squares, found[:1].expand_as(found)


def as_they_are(entries: Tensor, *_: Any) -> Tensor:
    """Leave keys rotated, or as they were before."""
    return entries


def where_they_are_read(self: LowRankKeys, position: Tensor) -> Tensor:
    """Rotate keys to the places they are read at."""
    return at(self, torch.arange(position.shape[2]).expand_as(position))


def without_what_left(self: LowRankKeys, leaving: Leaving) -> None:
    """Forget the first key."""
    take(self, leaving)
    self._coordinates[:, 0] = 0


def steady_ones(self: ChunkOutlier, view: PromptView) -> Tensor:
    """Keep the chunks of like keys."""
    return -prompt(self, view)


def entry_by_entry(self: WholeChunks, score: Tensor, position: Tensor, budget: Sequence[int]) -> Tensor:
    """Keep the best entries."""
    return Protected.priority(self, score, position, budget)


def neighbours(self: Far, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Read the values of the page beside."""
    return read(self, chosen)[0], read(self, (chosen + 1) % self._count)[1]


def for_nothing(*_: Any) -> int:
    """Say that coordinates need no room."""
    return 0


_LOOPS = partial(shadow.equals_loops, "llama_gqa")
_FULL = partial(shadow.all_of_full_rank_is_the_full_cache, "llama_gqa")
_NEAREST = partial(shadow.keys_are_the_nearest_of_their_rank, "llama_gqa", 5)
_BYTES = partial(shadow.bytes_lie_where_they_were_said_to, ())

MUTANTS = (
    Mutant(
        name="the first key stands for a chunk",
        patches=((Landmarks, "put", first_key),),
        killed_by=(shadow.landmarks_are_means, _LOOPS),
    ),
    Mutant(
        name="queries are added",
        patches=((Landmarks, "choose", sum_over_queries),),
        killed_by=(shadow.landmarks_are_means, shadow.a_planted_chunk_is_read),
    ),
    Mutant(
        name="the smallest directions are kept",
        patches=((low_rank, "main_directions", smallest_first),),
        killed_by=(_NEAREST, _LOOPS),
    ),
    Mutant(
        name="rows share directions",
        patches=((low_rank, "main_directions", first_row_for_all),),
        killed_by=(_NEAREST,),
    ),
    Mutant(
        name="keys are cut as they are rotated",
        patches=((low_rank, "turned_back", as_they_are), (low_rank, "turn", as_they_are)),
        killed_by=(_NEAREST, _LOOPS),
    ),
    Mutant(name="keys are not rotated back", patches=((low_rank, "turn", as_they_are),), killed_by=(_FULL,)),
    Mutant(
        name="keys lie where they are read",
        patches=((LowRankKeys, "at", where_they_are_read),),
        killed_by=(_FULL, _LOOPS),
    ),
    Mutant(name="a key is forgotten", patches=((LowRankKeys, "take", without_what_left),), killed_by=(_NEAREST,)),
    Mutant(name="values of other pages are read", patches=((Far, "_read", neighbours),), killed_by=(_LOOPS,)),
    Mutant(
        name="chunks of like keys stay",
        patches=((ChunkOutlier, "prompt", steady_ones),),
        killed_by=(shadow.planted_outliers_stay, _LOOPS),
    ),
    Mutant(
        name="entries stay one by one",
        patches=((WholeChunks, "priority", entry_by_entry),),
        killed_by=(shadow.chunks_are_kept_whole,),
    ),
    Mutant(
        name="pages go down twice", patches=((Level, "put", hands_down_again),), killed_by=(shadow.only_values_move,)
    ),
    Mutant(
        name="coordinates need no room",
        patches=((low_rank, "held_bytes", for_nothing),),
        killed_by=(_BYTES, shadow.bytes_fall_as_claimed),
    ),
    Mutant(
        name="means need as much room as bounds",
        patches=((LandmarkPaging, "index_bytes", Paging.index_bytes),),
        killed_by=(_BYTES, shadow.bytes_fall_as_claimed),
    ),
)
