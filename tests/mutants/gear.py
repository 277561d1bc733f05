"""Outliers and corrections with one thing wrong each."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.codecs import corrected
from kvbench.cache.codecs.base import Format
from kvbench.cache.codecs.corrected import CorrectedFormat, CorrectedPayload, low_rank
from kvbench.cache.codecs.gear import SparsePacking
from kvbench.cache.codecs.packed import PackedFormat, PackedPayload
from kvbench.cache.plan import LayerPlan
from kvbench.kernels.packed.corrected import Corrected, Factors
from tests.mutants.core_mutant import Mutant
from tests.support import codecs, gear

encode, blocks = SparsePacking.encode, CorrectedFormat.blocks
pack, tiles, plain_logits = CorrectedPayload._pack, Factors._tiles, Corrected.logits


def nearest_ones(self: SparsePacking, entries: Tensor) -> tuple[Tensor | None, ...]:
    """Keep the numbers that are near the mean."""
    *codes, value, channel = encode(self, entries)
    assert value is not None
    assert channel is not None
    dim = entries.shape[3]
    other = channel // dim * dim + (channel + 1) % dim
    found = entries.transpose(1, 2).flatten(2).gather(2, other[:, 0].long()).half()[:, None]
    return (*codes, found, other)


def scales_with_outliers(self: SparsePacking, numbers: Tensor) -> Tensor:
    """Make scales with 1000 in the place of outliers."""
    return torch.full_like(numbers, 1000.0)


def of_plain_numbers(numbers: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Take the directions of something else than what is corrected."""
    return low_rank(numbers.flip(-1), rank)


def one_direction_less(numbers: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Leave the last direction out."""
    left, right = low_rank(numbers, rank)
    right = right.clone()
    right[..., -1:, :] = 0
    return left, right


def random_directions(numbers: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Do without a single round of power iteration."""
    drawn = torch.randn(*numbers.shape[:-1], rank, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    left = torch.linalg.qr(drawn.to(numbers)).Q
    return left, left.mT @ numbers


def first_tile(self: Factors, dtype: torch.dtype) -> Any:
    """Read no more than one tile."""
    return list(tiles(self, dtype))[:1]


def without_corrections(self: Corrected, rows: Tensor, out: Tensor) -> None:
    """Read codes alone."""
    self.packed.logits(rows, out)


def dense_copy(self: Corrected, rows: Tensor, out: Tensor) -> None:
    """Multiply the factors out, and the codes with them."""
    out.copy_(torch.matmul(rows, self.dense(0, self.length, rows.dtype).mT))


def of_the_whole(self: CorrectedPayload, start: int, entries: Tensor) -> None:
    """Take every block's corrections anew whenever another one is packed."""
    pack(self, start, entries)
    if start > 0 and entries.shape[2] > 0:
        for each in self.factors:
            each.right.mul_(1.01)


def a_prompt_in_blocks(self: CorrectedFormat, dim: int, prompt: int, entries: int) -> list[tuple[int, int, int]]:
    """Give a prompt no more directions than a block."""
    (count, tokens, _), later = blocks(self, dim, prompt, entries)
    return [(count, tokens, min(self.block_rank, tokens)), later]


def free_factors(self: CorrectedFormat, dim: int, entries: int) -> int:
    """Count codes and outliers alone."""
    return PackedFormat.packed_bytes(self, dim, entries)


def free_blocks(self: CorrectedFormat, prompt: int) -> CorrectedFormat:
    """Count everything as the prompt's."""
    return self.__class__(**{**vars(self), "prompt": 10**6})


def without_a_prompt(self: LayerPlan, run: Any) -> tuple[Format, Format]:
    """Count bytes as if nothing came with the prompt."""
    return self.codec.key_format, self.codec.value_format


MUTANTS = (
    Mutant(
        name="others stay exact than those that are furthest",
        patches=((SparsePacking, "encode", nearest_ones),),
        killed_by=(gear.codes_and_outliers_equal_plain_loops,),
    ),
    Mutant(
        name="scales reach as far as outliers",
        patches=((SparsePacking, "_middle", scales_with_outliers),),
        killed_by=(gear.codes_and_outliers_equal_plain_loops, gear.each_piece_loses_no_more_than_fewer),
    ),
    Mutant(
        name="corrections of something else",
        patches=((corrected, "low_rank", of_plain_numbers),),
        killed_by=(gear.each_piece_loses_no_more_than_fewer, gear.at_full_rank_nothing_is_lost),
    ),
    Mutant(
        name="a direction less",
        patches=((corrected, "low_rank", one_direction_less),),
        killed_by=(gear.at_full_rank_nothing_is_lost,),
    ),
    Mutant(
        name="random directions",
        patches=((gear, "low_rank", random_directions),),
        killed_by=(gear.corrections_are_nearly_the_best,),
    ),
    Mutant(
        name="the first tile only",
        patches=((Factors, "_tiles", first_tile),),
        killed_by=(gear.products_equal_dense_ones,),
    ),
    Mutant(
        name="keys without corrections",
        patches=((Corrected, "logits", without_corrections),),
        killed_by=(gear.products_equal_dense_ones,),
    ),
    Mutant(
        name="the factors are multiplied out",
        patches=((Corrected, "logits", dense_copy),),
        killed_by=(partial(codecs.a_step_needs_little_room, "gear", "reference"),),
    ),
    Mutant(
        name="corrections are changed later",
        patches=((CorrectedPayload, "_pack", of_the_whole),),
        killed_by=(gear.blocks_are_written_once,),
    ),
    Mutant(
        name="no correction where it is read",
        patches=((CorrectedPayload, "_coded", PackedPayload._coded),),
        killed_by=(gear.what_is_read_is_codes_and_products,),
    ),
    Mutant(
        name="a prompt as a block",
        patches=((CorrectedFormat, "blocks", a_prompt_in_blocks),),
        killed_by=(gear.what_is_read_is_codes_and_products, gear.bytes_are_those_of_the_paper),
    ),
    Mutant(
        name="factors cost nothing",
        patches=((CorrectedFormat, "packed_bytes", free_factors),),
        killed_by=(gear.bytes_are_those_of_every_piece, gear.bytes_are_those_of_the_paper),
    ),
    Mutant(
        name="no prompt is counted",
        patches=((LayerPlan, "_formats", without_a_prompt),),
        killed_by=(gear.a_budget_in_bytes_is_kept,),
    ),
    Mutant(
        name="blocks cost what a prompt does",
        patches=((CorrectedFormat, "after", free_blocks),),
        killed_by=(gear.bytes_are_those_of_every_piece,),
    ),
)
