"""Radii and angles with one thing wrong each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.codecs import polarquant
from kvbench.cache.codecs.packed import PackedFormat
from kvbench.cache.codecs.polarquant import PolarPacking, PolarQuant
from kvbench.kernels.packed import Rows
from kvbench.kernels.packed.polar import Polar
from tests.mutants.codecs import whole_copy, without_metadata
from tests.mutants.core_mutant import Mutant
from tests.support import codecs
from tests.support import polarquant as support

dense, logits, codes_of, encode = Polar.dense, Polar.logits, Polar._codes, PolarPacking.encode


def lower_ends(self: Polar, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Let codes stand for the lower ends of their steps."""
    low, step, first, turn = self.scales.double().chunk(4, dim=-1)
    scales = torch.cat([low - step / 2, step, first - turn / 2, turn], dim=-1)
    return dense(replace(self, scales=scales), start, stop, dtype)


def swapped(self: Polar, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Take angles for radii."""
    radius, angle = codes_of(self, start, stop)
    return angle, radius


def smallest_angle(angle: Tensor) -> Tensor:
    """Begin at the smallest angle, as atan2 counts."""
    return angle.amin(dim=3)


def wider(self: PolarPacking, entries: Tensor) -> tuple[Tensor, Tensor]:
    """Keep steps that are wider than those codes were made with."""
    codes, scales = encode(self, entries)
    return codes, scales * 1.05


def halves(self: PolarQuant, view: Any, layer: int) -> PolarPacking:
    """Pair halves of keys of which only some channels are rotated."""
    return PolarPacking(rule=self, half=view.layers[layer].key_dim // 2)


def without_least_radii(self: Polar, rows: Tensor, out: Tensor) -> None:
    """Count radii from 0."""
    rest = self.scales.chunk(4, dim=-1)[1:]
    logits(replace(self, scales=torch.cat([torch.zeros_like(rest[0]), *rest], dim=-1)), rows, out)


def first_group(self: Polar, rows: Tensor, out: Tensor) -> None:
    """Take the table of the first group for all of them."""
    logits(replace(self, scales=self.scales[:, :, :1].expand_as(self.scales)), rows, out)


MUTANTS = (
    Mutant(
        name="codes stand for lower ends",
        patches=((Polar, "dense", lower_ends),),
        killed_by=(support.polar_codes_equal_plain_loops, support.polar_errors_are_at_most_half_a_step),
    ),
    Mutant(
        name="angles for radii",
        patches=((Polar, "_codes", swapped),),
        killed_by=(support.polar_codes_equal_plain_loops,),
    ),
    Mutant(
        name="angles begin at the smallest one",
        patches=((polarquant, "_behind_the_widest_gap", smallest_angle),),
        killed_by=(support.where_angles_begin_does_not_matter, support.polar_codes_equal_plain_loops),
    ),
    Mutant(
        name="steps are kept too wide",
        patches=((PolarPacking, "encode", wider),),
        killed_by=(support.polar_errors_are_at_most_half_a_step,),
    ),
    Mutant(
        name="channels that are not rotated together",
        patches=((PolarQuant, "keys", halves),),
        killed_by=(support.a_pair_is_what_is_rotated_together,),
    ),
    Mutant(
        name="radii from 0",
        patches=((Polar, "logits", without_least_radii),),
        killed_by=(
            partial(support.looked_up_products_equal_dense_ones, 8, 2),
            partial(support.equals_attention_to_what_the_polar_codes_stand_for, "llama_gqa"),
        ),
    ),
    Mutant(
        name="one table for all groups",
        patches=((Polar, "logits", first_group),),
        killed_by=(partial(support.looked_up_products_equal_dense_ones, 40, 1),),
    ),
    Mutant(
        name="scales cost nothing",
        patches=((PackedFormat, "packed_bytes", without_metadata),),
        killed_by=(
            support.polar_bytes_are_those_of_the_paper,
            partial(codecs.bytes_are_counted_to_the_last, "polarquant"),
        ),
    ),
    Mutant(
        name="a dense copy is read",
        patches=((Rows, "logits", whole_copy),),
        killed_by=(partial(codecs.a_step_needs_little_room, "polarquant", "reference"),),
    ),
    Mutant(
        name="channels without a partner",
        patches=((PolarQuant, "why_not", lambda self, shape: None),),
        killed_by=(support.keys_of_odd_size_are_refused,),
    ),
)
