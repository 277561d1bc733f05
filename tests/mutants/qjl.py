"""Signs of random projections with one thing wrong each."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.codecs import qjl
from kvbench.cache.codecs.packed import PackedFormat
from kvbench.cache.codecs.qjl import QJL, SketchPacking
from kvbench.cache.codecs.turboquant import rotation
from kvbench.kernels.packed import Rows, sketch
from kvbench.kernels.packed.sketch import Sketch
from tests.mutants.codecs import whole_copy, without_metadata
from tests.mutants.core_mutant import Mutant
from tests.support import codecs
from tests.support import qjl as support

logits, encode = Sketch.logits, SketchPacking.encode


def of_normal_numbers(dim: int) -> float:
    """Take directions for normal numbers."""
    return math.sqrt(math.pi / 2)


def not_orthogonal(size: int, random: torch.Generator) -> Tensor:
    """Draw normal numbers."""
    drawn = torch.randn(size, size, dtype=torch.float64, generator=random)
    made: Tensor = drawn / drawn.norm(dim=1, keepdim=True)
    return made


def one_block(size: int, random: torch.Generator) -> Tensor:
    """Draw the same block again and again."""
    return rotation(size, torch.Generator().manual_seed(random.initial_seed()))


def one_length(self: SketchPacking, entries: Tensor) -> tuple[Tensor, ...]:
    """Keep the length of the key for that of both parts."""
    signs, large_signs, lengths, large = encode(self, entries)
    return signs, large_signs, lengths.norm(dim=-1, keepdim=True).expand_as(lengths), large


def smallest(self: SketchPacking, entries: Tensor) -> tuple[Tensor, ...]:
    """Keep the smallest channels apart."""
    sizes = entries.unflatten(2, (-1, self.tokens)).norm(dim=3).repeat_interleave(self.tokens, dim=2)
    kept = encode(self, entries / sizes.square())
    return (*encode(self, entries)[:3], kept[3])


def no_large_channel(self: Sketch, rows: Tensor, out: Tensor) -> None:
    """Forget large channels."""
    logits(replace(self, lengths=self.lengths * self.lengths.new_tensor([1.0, 0.0])), rows, out)


def first_group(self: Sketch, rows: Tensor, out: Tensor) -> None:
    """Take the large channels of the first group for those of all."""
    logits(replace(self, large=self.large[:, :, :1].expand_as(self.large)), rows, out)


def first_layer(self: QJL, view: Any, layer: int) -> SketchPacking:
    """Take the directions of the first layer for all."""
    return qjl._packing(self, view, 0)


MUTANTS = (
    Mutant(
        name="the factor of normal numbers",
        patches=((sketch, "unbiased", of_normal_numbers),),
        killed_by=(support.signs_equal_plain_loops, partial(support.products_are_right_on_average, 8, 8)),
    ),
    Mutant(
        name="directions that are not orthogonal",
        patches=((qjl, "rotation", not_orthogonal),),
        killed_by=(partial(support.products_are_right_on_average, 8, 1),),
    ),
    Mutant(
        name="blocks that are alike",
        patches=((qjl, "rotation", one_block),),
        killed_by=(
            partial(support.products_are_right_on_average, 8, 8),
            support.layers_have_directions_of_their_own,
        ),
    ),
    Mutant(
        name="the whole key's length",
        patches=((SketchPacking, "encode", one_length),),
        killed_by=(support.signs_equal_plain_loops,),
    ),
    Mutant(
        name="other channels are kept apart",
        patches=((SketchPacking, "encode", smallest),),
        killed_by=(support.large_channels_do_not_drown_the_others,),
    ),
    Mutant(
        name="no large channels",
        patches=((Sketch, "logits", no_large_channel),),
        killed_by=(
            support.signs_equal_plain_loops,
            partial(support.equals_attention_to_what_the_signs_stand_for, "llama_gqa"),
        ),
    ),
    Mutant(
        name="the first group's large channels",
        patches=((Sketch, "logits", first_group),),
        killed_by=(support.signs_equal_plain_loops,),
    ),
    Mutant(
        name="the first layer's directions",
        patches=((QJL, "keys", first_layer),),
        killed_by=(support.layers_have_directions_of_their_own,),
    ),
    Mutant(
        name="lengths cost nothing",
        patches=((PackedFormat, "packed_bytes", without_metadata),),
        killed_by=(
            support.bytes_are_those_of_signs_and_lengths,
            partial(codecs.bytes_are_counted_to_the_last, "qjl"),
        ),
    ),
    Mutant(
        name="a dense copy is read",
        patches=((Rows, "logits", whole_copy),),
        killed_by=(partial(codecs.a_step_needs_little_room, "qjl", "reference"),),
    ),
    Mutant(
        name="any number of channels",
        patches=((QJL, "why_not", lambda self, shape: None),),
        killed_by=(support.keys_of_many_channels_are_refused,),
    ),
)
