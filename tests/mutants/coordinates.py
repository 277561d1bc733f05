"""Coordinates of heads with one thing wrong each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.codecs import rotated, rotatekv
from kvbench.cache.codecs.basis import Basis
from kvbench.cache.codecs.moments import places
from kvbench.cache.codecs.quantiser import Quantiser
from kvbench.cache.codecs.rotatekv import RotateKV
from kvbench.types import ModelView
from tests.mutants.core_mutant import Mutant
from tests.support import coordinates

matrix, queries, rotation, encode = rotated.hadamard, Basis.queries, rotated._rotation, Quantiser.encode
of_keys = RotateKV.of_keys


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


def turned_twice(matrix: Tensor, view: ModelView) -> Basis:
    """Turn every entry back again."""
    made = rotation(matrix, view)
    assert made.directions is not None
    return replace(made, directions=made.directions @ made.directions)


def for_every_head(matrix: Tensor, view: ModelView) -> Basis:
    """Hold a matrix for each head."""
    made = rotation(matrix, view)
    assert made.directions is not None
    return replace(made, directions=made.directions.repeat(view.layers[0].kv_heads, 1, 1, 1))


_PRODUCTS, _LOSE = coordinates.coordinates_are_those_of_plain_products, coordinates.coordinates_alone_lose_nothing


def as_far_as_it_goes(self: Quantiser, entries: Tensor, **given: Any) -> Any:
    """Clip nothing."""
    return encode(replace(self, clip=1.0), entries, **given)


def not_in_order(moments: Tensor) -> Tensor:
    """Leave channels where they are."""
    return torch.arange(moments.shape[1]).expand(len(moments), -1)


def before_it_is_turned(self: RotateKV, moments: Tensor, heads: int) -> Basis:
    """Sort channels, and turn them then."""
    made = of_keys(self, moments, heads)
    into = torch.eye(moments.shape[1], dtype=torch.float64)[places(moments)] @ matrix(moments.shape[1])
    return replace(made, directions=into.unflatten(1, (heads, -1)))


MUTANTS = (
    Mutant(
        name="what is turned is not sorted",
        patches=((rotatekv, "places", not_in_order),),
        killed_by=(partial(_PRODUCTS, "rotatekv", "llama_gqa"), coordinates.sorting_brings_like_channels_together),
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
