"""Chunks with one thing wrong each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.cache import rotary
from kvbench.cache.codecs import chunks
from kvbench.cache.codecs.chunks import Outliers, Streamed, StreamPayload
from kvbench.cache.codecs.streaming import StreamFormat
from tests.mutants.core_mutant import Mutant
from tests.support import streams

pack, outliers, of_groups, pack_first = (
    StreamPayload._pack,
    StreamPayload._outliers,
    StreamPayload._of_groups,
    StreamPayload._pack_first,
)
each_chunk, outlier_bytes, stream_logits = Streamed._chunks, StreamFormat.outlier_bytes, Streamed.logits
products = rotary.channel_products


def one_scale_for_all(self: StreamPayload, entries: Tensor, position: Any) -> None:
    """Scale few bits as if they were many."""
    pack(self, entries, position)
    at = self.chunks - 1
    self.scale[:, :, at] *= (2 ** (self.how.bits - 1) - 1) / (2 ** (self.how.high - 1) - 1)


def average_first(self: StreamPayload, entries: Tensor, position: Any) -> None:
    """Compare with an average that the chunk is already part of."""
    numbers = rotary.turned_back(entries, position, self.how.rotary)
    largest = of_groups(self, numbers.abs().amax(dim=2))
    if self.chunks > 0:
        decay = self.how.rule.decay
        self.average.copy_(decay * self.average + (1 - decay) * largest)
    pack(self, entries, position)


def forgetful(self: StreamPayload, entries: Tensor, position: Any) -> None:
    """Begin each chunk with a new average."""
    before = self.chunks
    largest = of_groups(self, rotary.turned_back(entries, position, self.how.rotary).abs().amax(dim=2))
    if before > 0:
        self.average.copy_(largest)
    pack(self, entries, position)


def fading(self: StreamPayload, entries: Tensor, position: Any) -> None:
    """Let the average fade from chunk to chunk."""
    pack(self, entries, position)
    self.average *= 0.5


def as_they_come(entries: Tensor, position: Any, rotary: Any) -> Tensor:
    """Pack keys with their rotation."""
    return entries.float()


def no_outliers(self: StreamPayload, numbers: Tensor, is_outlier: Tensor) -> Outliers:
    """Lose the outliers."""
    return outliers(self, numbers, torch.zeros_like(is_outlier))


def first_ones_as_all(self: StreamPayload, entries: Tensor, position: Any) -> None:
    """Keep few bits of the first tokens."""
    pack_first(self, (entries / 4).round() * 4, position)


def alone(self: StreamPayload, largest: Tensor) -> Tensor:
    """Judge every channel alone, whatever was asked."""
    return largest


def one_chunk_late(self: Streamed, dtype: torch.dtype) -> Any:
    """Read the outliers of the chunk before."""
    for first, each, numbers in each_chunk(self, dtype):
        yield first + numbers.shape[1] if first == self.sink_entries else first, each, numbers


def free_index(self: StreamFormat, channels: int) -> int:
    """Forget that an outlier has a place."""
    return outlier_bytes(self, channels) - 4 * channels


def exact_ones_first(self: Streamed, rows: Tensor) -> Tensor:
    """Put the exact entries before the packed ones."""
    return stream_logits(self, rows).roll(self.exact, dims=-1)


def as_if_unrotated(rows: Tensor, index: Tensor, position: Tensor, inverse_frequency: Tensor) -> Tensor:
    """Read outliers without their rotation."""
    return products(rows, index, torch.zeros_like(position), inverse_frequency)


def turned_forward(rows: Tensor, index: Tensor, position: Tensor, inverse_frequency: Tensor) -> Tensor:
    """Turn queries the way of the keys."""
    return products(rows, index, -position, inverse_frequency)


def all_rotated(rows: Tensor, index: Tensor, position: Tensor, inverse_frequency: Tensor) -> Tensor:
    """Rotate channels past the rotary ones."""
    missing = rows.shape[3] // 2 - len(inverse_frequency)
    return products(rows, index, position, torch.cat([inverse_frequency, inverse_frequency[:1].expand(missing)]))


def first_heads_positions(rows: Tensor, index: Tensor, position: Tensor, inverse_frequency: Tensor) -> Tensor:
    """Take the positions of the first head for all."""
    return products(rows, index, position[:, :1], inverse_frequency)


def whole_copy(self: Streamed, rows: Tensor) -> Tensor:
    """Unpack everything at once."""
    return torch.matmul(rows, self.numbers().to(rows.dtype).transpose(-1, -2))


def clipped(self: StreamPayload, entries: Tensor, position: Any) -> None:
    """Scale by the average alone."""
    how = self.how
    self.how = replace(how, rule=replace(how.rule, scale="ema"))
    pack(self, entries, position)
    self.how = how


_LOOPS, _ROOM = streams.chunks_equal_plain_loops, streams.a_step_needs_little_room

MUTANTS = (
    Mutant(
        name="one scale for few and many bits",
        patches=((StreamPayload, "_pack", one_scale_for_all),),
        killed_by=(_LOOPS, streams.one_chunk_is_the_largest_by_channel),
    ),
    Mutant(
        name="the average knows the chunk it is compared with",
        patches=((StreamPayload, "_pack", average_first),),
        killed_by=(_LOOPS,),
    ),
    Mutant(name="the average forgets", patches=((StreamPayload, "_pack", forgetful),), killed_by=(_LOOPS,)),
    Mutant(
        name="keys are packed with their rotation",
        patches=((chunks, "turned_back", as_they_come),),
        killed_by=(streams.keys_are_packed_as_they_were_before_rotation,),
    ),
    Mutant(
        name="outliers are lost",
        patches=((StreamPayload, "_outliers", no_outliers),),
        killed_by=(_LOOPS, streams.numbers_stay_within_their_bounds),
    ),
    Mutant(
        name="first tokens have few bits",
        patches=((StreamPayload, "_pack_first", first_ones_as_all),),
        killed_by=(_LOOPS, streams.numbers_stay_within_their_bounds),
    ),
    Mutant(name="groups are ignored", patches=((StreamPayload, "_of_groups", alone),), killed_by=(_LOOPS,)),
    Mutant(
        name="scales clip",
        patches=((StreamPayload, "_pack", clipped),),
        killed_by=(streams.numbers_stay_within_their_bounds,),
    ),
    Mutant(
        name="the first chunk's outliers are read with the second",
        patches=((Streamed, "_chunks", one_chunk_late),),
        killed_by=(_LOOPS,),
    ),
    Mutant(
        name="exact entries come first",
        patches=((Streamed, "logits", exact_ones_first),),
        killed_by=(streams.attention_reads_what_is_held,),
    ),
    *(
        Mutant(
            name=name,
            patches=((chunks, "channel_products", broken),),
            killed_by=(streams.attention_reads_what_is_held,),
        )
        for name, broken in (
            ("outliers are not rotated", as_if_unrotated),
            ("queries turn as keys do", turned_forward),
            ("all channels are rotated", all_rotated),
            ("outliers of all heads have the first one's positions", first_heads_positions),
        )
    ),
    Mutant(
        name="a dense copy is read",
        patches=((Streamed, "logits", whole_copy),),
        killed_by=(partial(_ROOM, "reference", 0), partial(_ROOM, "reference", 24)),
    ),
    Mutant(
        name="an outlier's place costs nothing",
        patches=((StreamFormat, "outlier_bytes", free_index),),
        killed_by=(streams.bytes_count_the_outliers_there_are,),
    ),
    Mutant(
        name="the average fades",
        patches=((StreamPayload, "_pack", fading),),
        killed_by=(streams.what_does_not_change_has_no_outliers, _LOOPS),
    ),
)
