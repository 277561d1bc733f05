"""The reference of packed rows with one thing wrong each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from kvbench.kernels.packed import Packed, Spans, reference
from kvbench.kernels.rotary import turn
from tests.mutants.core_mutant import Mutant
from tests.support.packed_rows import ALL, PAGED, RAGGED, Case, rows_are_what_they_stand_for

coded, spread, dense, in_pages = reference._coded, reference._spread, reference.dense, reference._in_pages
rows = Spans.rows


def next_level(packed: Packed, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Take the table one code late."""
    assert packed.levels is not None
    return coded(replace(packed, levels=packed.levels.roll(1)), start, stop, dtype)


def outliers_stay_in_the_first_head(packed: Packed, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Count channels within a head."""
    assert packed.outliers is not None
    channel = packed.outliers.channel % packed.form.dim
    return dense(replace(packed, outliers=replace(packed.outliers, channel=channel)), start, stop, dtype)


def outliers_are_rotated_already(packed: Packed, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Rotate before outliers are put in."""
    bare = dense(replace(packed, outliers=None), start, stop, dtype)
    is_outlier = dense(packed, start, stop, dtype) != bare
    return torch.where(is_outlier, dense(replace(packed, turned=None), start, stop, dtype), bare)


def turned_back(keys: Tensor, position: Tensor, inverse_frequency: Tensor) -> Tensor:
    """Rotate the other way."""
    return turn(keys, -position, inverse_frequency)


def turned_exactly(keys: Tensor, position: Tensor, inverse_frequency: Tensor) -> Tensor:
    """Rotate by angles that are not rounded as the model's are."""
    return turn(keys.double(), position, inverse_frequency).to(keys.dtype)


def own_scales(scale: Tensor, packed: Packed, start: int, stop: int) -> Tensor:
    """Let every row have its own scales."""
    return spread(scale, replace(packed, form=replace(packed.form, tokens=1)), start, stop)


def as_if_all_were_there(packed: Packed, table: Tensor, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Take the first page for one that does not exist."""
    return in_pages(packed, table.clamp(min=0), start, stop, dtype)


def rows_of_the_first_head(self: Spans, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Look for the rows of every head where those of the first one lie."""
    return rows(replace(self, start=self.start.flatten()[0].expand_as(self.start)), first, last)


def all_rows_are_there(self: Spans, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Let every head have as many rows as the one that has most."""
    row, is_there = rows(self, first, last)
    return row, torch.ones_like(is_there)


_KEYS = Case(codebook=True, outliers=7, rotary=32)
MUTANTS = (
    Mutant(
        name="the table is taken one code late",
        patches=((reference, "_coded", next_level),),
        killed_by=(partial(rows_are_what_they_stand_for, Case(bits=3, codebook=True)),),
    ),
    Mutant(
        name="outliers stay in the first head",
        patches=((reference, "dense", outliers_stay_in_the_first_head),),
        killed_by=(partial(rows_are_what_they_stand_for, Case(outliers=7)),),
    ),
    Mutant(
        name="outliers are rotated already",
        patches=((reference, "dense", outliers_are_rotated_already),),
        killed_by=(partial(rows_are_what_they_stand_for, _KEYS),),
    ),
    Mutant(
        name="rows are turned back",
        patches=((reference, "turn", turned_back),),
        killed_by=(partial(rows_are_what_they_stand_for, _KEYS),),
    ),
    Mutant(
        name="angles are not rounded",
        patches=((reference, "turn", turned_exactly),),
        killed_by=(partial(rows_are_what_they_stand_for, _KEYS),),
    ),
    Mutant(
        name="every row has its own scales",
        patches=((reference, "_spread", own_scales),),
        killed_by=(partial(rows_are_what_they_stand_for, Case(tokens=ALL)),),
        error=IndexError,
    ),
    Mutant(
        name="a page that does not exist is the first",
        patches=((reference, "_in_pages", as_if_all_were_there),),
        killed_by=(partial(rows_are_what_they_stand_for, PAGED[2]),),
    ),
    Mutant(
        name="all heads have the rows of the first",
        patches=((Spans, "rows", rows_of_the_first_head),),
        killed_by=(partial(rows_are_what_they_stand_for, RAGGED[3]),),
    ),
    Mutant(
        name="a head has as many rows as the one that has most",
        patches=((Spans, "rows", all_rows_are_there),),
        killed_by=(partial(rows_are_what_they_stand_for, RAGGED[0]),),
    ),
)
