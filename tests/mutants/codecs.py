"""Packed entries with one thing wrong each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.cache import packing_error
from kvbench.cache.codecs.packed import PackedFormat, PackedPayload
from kvbench.cache.codecs.quantiser import Quantiser
from kvbench.cache.plan import LayerPlan
from kvbench.kernels import packing
from kvbench.kernels.packed import Packed, Rows, reference
from kvbench.strategies.base import CacheStrategy
from tests.mutants.core_mutant import Mutant
from tests.support import codecs

encode, make_codes, form = Quantiser.encode, Quantiser._codes, Quantiser.form
payload_entries, settle, flush = PackedPayload.entries, PackedPayload.settle, PackedFormat.packed
dense, spread, pack = reference.dense, reference._spread, packing.pack
weighted, window_plan = Rows.weighted, CacheStrategy._window_plan


def low_half_last(codes: Tensor, bits: int) -> Tensor:
    """Pack the bits of a code the other way round."""
    return pack(codes ^ (2**bits - 1), bits)


def one_step_too_many(self: Quantiser, groups: Tensor, scale: Tensor, low: Tensor | None) -> Tensor:
    """Take 2^b steps for 2^b - 1."""
    return make_codes(self, groups, scale if low is None else scale * (1 - 2.0**-self.bits), low)


def levels_right_at_two_and_four(self: Quantiser, groups: Tensor, scale: Tensor, low: Tensor | None) -> Tensor:
    """Take bits^2 - 1 for the highest code."""
    return make_codes(self, groups, scale, low).clamp(max=self.bits**2 - 1)


def unrounded_scales(self: Quantiser, entries: Tensor, **_: Any) -> Any:
    """Make codes with a scale that is not the one that is kept."""
    codes, scale, low = encode(self, entries)
    return codes, scale * 1.001, low


def frozen_scale(self: Quantiser, entries: Tensor, **_: Any) -> Any:
    """Make codes with the scale of the first token."""
    scale, low = encode(self, entries)[1:]
    first = encode(self, entries[:, :, :1])[1]
    shrunk = (entries / first).clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    return shrunk, first.expand_as(scale), low


def by_token(self: Quantiser, dim: int) -> Any:
    """Let tokens have scales of their own whatever was asked."""
    return form(replace(self, along="channels", group=0), dim)


def exact_ones_first(self: PackedPayload, stop: int, position: Tensor | None = None) -> Rows:
    """Read the exact entries before the packed ones."""
    rows = payload_entries(self, stop)
    return Rows(list(rows.parts)[::-1], rows.dtype)


def too_early(self: PackedPayload, position: Tensor) -> None:
    """Pack one token sooner than need be."""
    rows = self.exact.shape[2]
    if rows > 0 and self.filled - self.packed == rows - 1 and self.how.flush == 1:
        self.filled += 1
        settle(self, position)
        self.filled -= 1


def packed_again(self: PackedPayload, position: Tensor) -> None:
    """Pack everything anew when the latest tokens are packed."""
    before = self.packed
    settle(self, position)
    if self.packed > before > 0:
        self._pack(0, self.read(self.filled)[:, :, : self.packed] * 1.01)


def whole_copy(self: Rows, rows: Tensor) -> Tensor:
    """Unpack everything before it is read."""
    return torch.matmul(rows, everything(self, rows.dtype).transpose(-1, -2))


def everything(self: Rows, dtype: torch.dtype) -> Tensor:
    """Return all numbers."""
    return torch.cat([p if isinstance(p, Tensor) else p.dense(0, p.length, dtype) for p in self.parts], dim=2)


def without_least_numbers(packed: Packed, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Forget the least numbers."""
    numbers = dense(packed, start, stop, dtype)
    if packed.low is not None:
        numbers -= spread(packed.low, packed, start, stop).to(dtype)
    return numbers


def only_whole_blocks(length: int) -> Any:
    """Leave out what does not fill a block."""
    return (slice(start, start + 32) for start in range(0, length - 31, 32))


def without_metadata(self: PackedFormat, dim: int, entries: int) -> int:
    """Count codes alone."""
    return self.quantiser.kept(dim)[0].bytes(entries)


def no_part_in_reverse(self: Rows, weights: Tensor) -> Tensor:
    """Sum the parts by each other's weights."""
    return weighted(Rows(list(self.parts)[::-1], self.dtype), weights)


def packed_everywhere(self: CacheStrategy, view: Any, index: int, run: Any) -> LayerPlan:
    """Pack sliding layers as the others."""
    return replace(window_plan(self, view, index, run), codec=self.codec.of_layer(view, index))


def swapped(packed: Any, full: Any) -> dict[str, tuple[float, float]]:
    """Take the size for the error."""
    return {name: found[::-1] for name, found in packing_error.squares(packed, full).items()}


def a_group_too_few(self: PackedFormat, entries: int) -> int:
    """Leave a group exact that should be packed."""
    return max(0, flush(self, entries) - self.flush)


_STANDS_FOR = codecs.equals_attention_to_what_the_codes_stand_for

MUTANTS = (
    Mutant(
        name="codes are packed upside down",
        patches=((codecs, "pack", low_half_last),),
        killed_by=(codecs.packing_keeps_every_code,),
    ),
    Mutant(
        name="a step too many",
        patches=((Quantiser, "_codes", one_step_too_many),),
        killed_by=(codecs.codes_equal_plain_loops, codecs.rounding_stays_within_its_bound),
    ),
    Mutant(
        name="levels that are right with 2 and 4 bits",
        patches=((Quantiser, "_codes", levels_right_at_two_and_four),),
        killed_by=(codecs.codes_equal_plain_loops, codecs.rounding_stays_within_its_bound),
    ),
    Mutant(
        name="codes are made with another scale than the one kept",
        patches=((Quantiser, "encode", unrounded_scales),),
        killed_by=(codecs.codes_equal_plain_loops, partial(_STANDS_FOR, "kivi4", "llama_gqa")),
    ),
    Mutant(
        name="the first token's scale serves all",
        patches=((Quantiser, "encode", frozen_scale),),
        killed_by=(codecs.later_tokens_do_not_overflow,),
    ),
    Mutant(
        name="exact entries come first",
        patches=((PackedPayload, "entries", exact_ones_first),),
        killed_by=(partial(_STANDS_FOR, "kivi2", "llama_gqa"), partial(codecs.the_latest_tokens_are_exact, "kivi2")),
    ),
    Mutant(
        name="parts are summed by each other's weights",
        patches=((Rows, "weighted", no_part_in_reverse),),
        killed_by=(codecs.parts_lie_in_order,),
        error=Exception,
    ),
    Mutant(
        name="a token is packed too early",
        patches=((PackedPayload, "settle", too_early),),
        killed_by=(partial(codecs.the_latest_tokens_are_exact, "kivi4"), partial(_STANDS_FOR, "kivi2", "llama_gqa")),
        error=Exception,
    ),
    Mutant(
        name="everything is packed again with the latest tokens",
        patches=((PackedPayload, "settle", packed_again),),
        killed_by=(partial(codecs.a_token_is_packed_once, "kivi2"), partial(_STANDS_FOR, "kivi2", "llama_gqa")),
    ),
    Mutant(
        name="a dense copy is read",
        patches=((Rows, "logits", whole_copy),),
        killed_by=(
            partial(codecs.a_step_needs_little_room, "kivi2", "reference"),
            partial(codecs.a_step_needs_little_room, "quantization_8bit", "reference"),
        ),
    ),
    Mutant(
        name="the least numbers are forgotten",
        patches=((reference, "dense", without_least_numbers),),
        killed_by=(codecs.codes_equal_plain_loops, partial(_STANDS_FOR, "quantization_4bit", "gpt2")),
    ),
    Mutant(
        name="the last rows are not read",
        patches=((reference, "_blocks", only_whole_blocks),),
        killed_by=(codecs.parts_lie_in_order,),
        error=Exception,
    ),
    Mutant(
        name="scales cost nothing",
        patches=((PackedFormat, "packed_bytes", without_metadata),),
        killed_by=(
            partial(codecs.bytes_are_counted_to_the_last, "kivi2"),
            partial(codecs.bytes_are_counted_to_the_last, "fp8"),
        ),
    ),
    Mutant(
        name="a group too few is packed",
        patches=((PackedFormat, "packed", a_group_too_few),),
        killed_by=(
            partial(codecs.bytes_are_counted_to_the_last, "kivi2"),
            partial(codecs.the_latest_tokens_are_exact, "kivi2"),
            partial(codecs.selection_composes_with_codecs, "kivi2"),
        ),
        error=Exception,
    ),
    Mutant(
        name="channels do not have scales of their own",
        patches=((Quantiser, "form", by_token), (Quantiser, "tokens", 1)),
        killed_by=(codecs.keys_with_a_large_channel_want_scales_by_channel,),
        error=Exception,
    ),
    Mutant(
        name="errors are sizes",
        patches=((codecs, "squares", swapped),),
        killed_by=(partial(codecs.errors_are_those_of_plain_loops, "fp8"),),
    ),
    Mutant(
        name="packed entries count as exact",
        patches=((Rows, "exact", property(lambda self: sum(self.lengths))),),
        killed_by=(codecs.shares_are_counted,),
    ),
    Mutant(
        name="sliding layers are packed in groups",
        patches=((CacheStrategy, "_window_plan", packed_everywhere),),
        killed_by=(codecs.sliding_layers_are_dense_where_tokens_are_packed_together,),
        error=Exception,
    ),
)
