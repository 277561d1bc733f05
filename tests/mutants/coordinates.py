"""Coordinates of heads with one thing wrong each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.codecs import reordered, rotated, rotatekv
from kvbench.cache.codecs.basis import Basis
from kvbench.cache.codecs.moments import places
from kvbench.cache.codecs.quantiser import LARGEST_E4M3, Quantiser
from kvbench.cache.codecs.rotatekv import RotateKV
from kvbench.types import ModelView
from tests.mutants.core_mutant import Mutant
from tests.support import coordinates, sorting

matrix, queries, rotation, encode = rotated.hadamard, Basis.queries, rotated._rotation, Quantiser.encode
of_keys, codes, into = RotateKV.of_keys, Quantiser._codes, Basis.coordinates


def nothing_turned(size: int) -> Tensor:
    """Leave channels as they are."""
    return torch.eye(size, dtype=torch.float64)


def too_long(size: int) -> Tensor:
    """Forget to divide by the root of the size."""
    longer: Tensor = matrix(size) * size**0.5
    return longer


def queries_as_they_are(self: Basis, rows: Tensor) -> Tensor:
    """Forget to turn the query."""
    return rows


def turned_twice(matrix: Tensor, view: ModelView, layer: int) -> Basis:
    """Turn every entry back again."""
    made = rotation(matrix, view, layer)
    assert made.directions is not None
    return replace(made, directions=made.directions @ made.directions)


def for_every_head(matrix: Tensor, view: ModelView, layer: int) -> Basis:
    """Hold a matrix for each head."""
    made = rotation(matrix, view, layer)
    assert made.directions is not None
    return replace(made, directions=made.directions.repeat(view.layers[0].kv_heads, 1, 1, 1))


_PRODUCTS, _LOSE = coordinates.coordinates_are_those_of_plain_products, coordinates.coordinates_alone_lose_nothing


def as_far_as_it_goes(self: Quantiser, entries: Tensor, **given: Any) -> Any:
    """Clip nothing."""
    return encode(replace(self, clip=1.0), entries, **given)


def not_in_order(moments: Tensor) -> Tensor:
    """Leave channels where they are."""
    return torch.arange(moments.shape[1]).expand(len(moments), -1)


def in_their_order(self: Basis, rows: Tensor) -> Tensor:
    """Put every head's rows first."""
    assert self.place is not None
    ordered = torch.arange(self.rank).expand(len(self.place), -1).reshape(self.place.shape)
    return queries(replace(self, place=ordered), rows)


def as_it_comes(self: Quantiser, numbers: Tensor) -> Tensor:
    """Let what is too large be no number, as the format has it."""
    return torch.where(numbers.abs() > LARGEST_E4M3, torch.nan, numbers).to(torch.float8_e4m3fn)


def by_better_scales(self: Quantiser, groups: Tensor, scale: Tensor, low: Tensor | None) -> Tensor:
    """Round with other scales than those that are kept."""
    return codes(self, groups, scale * 1.5, low)


def one_late(self: Basis, entries: Tensor) -> Tensor:
    """Let each channel come where the next one should."""
    return into(self, entries).roll(1, dims=3)


def before_it_is_turned(self: RotateKV, moments: Tensor, heads: int) -> Basis:
    """Sort channels, and turn them then."""
    made = of_keys(self, moments, heads)
    into = torch.eye(moments.shape[1], dtype=torch.float64)[places(moments)] @ matrix(moments.shape[1])
    return replace(made, directions=into.unflatten(1, (heads, -1)))


MUTANTS = (
    Mutant(
        name="what is turned is not sorted",
        patches=((rotatekv, "places", not_in_order),),
        killed_by=(partial(_PRODUCTS, "rotatekv", "llama_gqa"), sorting.sorting_brings_like_channels_together),
    ),
    Mutant(
        name="channels are not sorted",
        patches=((reordered, "places", not_in_order),),
        killed_by=(partial(_PRODUCTS, "skvq", "llama_gqa"),),
    ),
    Mutant(
        name="queries keep the order of their channels",
        patches=((Basis, "queries", in_their_order),),
        killed_by=(sorting.an_order_there_and_back_changes_nothing,),
    ),
    Mutant(
        name="what is too large makes no number",
        patches=((Quantiser, "_in_few_bits", as_it_comes),),
        killed_by=(sorting.short_scales_stay_within_their_bound,),
    ),
    Mutant(
        name="codes are made by scales that are not kept",
        patches=((Quantiser, "_codes", by_better_scales),),
        killed_by=(sorting.short_scales_stay_within_their_bound,),
    ),
    Mutant(
        name="groups are one channel late",
        patches=((Basis, "coordinates", one_late),),
        killed_by=(sorting.in_their_own_order_channels_are_plain_codes,),
    ),
    Mutant(
        name="channels are sorted before they are turned",
        patches=((RotateKV, "of_keys", before_it_is_turned),),
        killed_by=(partial(_PRODUCTS, "rotatekv", "gpt2"),),
    ),
    Mutant(
        name="nothing is turned",
        patches=((rotated, "hadamard", nothing_turned),),
        killed_by=(
            partial(coordinates.a_rotation_spreads_what_stands_out, 64),
            partial(_PRODUCTS, "quarot", "llama_gqa"),
        ),
    ),
    Mutant(
        name="what is turned is turned back",
        patches=((rotated, "_rotation", turned_twice),),
        killed_by=(partial(_PRODUCTS, "quarot", "gpt2"),),
    ),
    Mutant(
        name="turned heads are longer",
        patches=((rotated, "hadamard", too_long), (coordinates, "hadamard", too_long)),
        killed_by=(
            partial(_LOSE, "quarot", "llama_gqa"),
            partial(coordinates.a_matrix_spreads_every_channel, 12),
        ),
    ),
    Mutant(
        name="the query is not turned",
        patches=((Basis, "queries", queries_as_they_are),),
        killed_by=(partial(_LOSE, "quarot", "gpt2"), partial(_PRODUCTS, "quarot", "llama_mha", "adakv")),
    ),
    Mutant(
        name="every head has a matrix of its own",
        patches=((rotated, "_rotation", for_every_head),),
        killed_by=(coordinates.bytes_are_those_of_the_numbers_and_one_rotation,),
    ),
    Mutant(
        name="nothing is clipped",
        patches=((Quantiser, "encode", as_far_as_it_goes),),
        killed_by=(coordinates.clipped_codes_equal_plain_loops,),
    ),
)
