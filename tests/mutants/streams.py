"""Chunks with one thing wrong each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.codecs.chunks import Outliers, Streamed, StreamPayload
from kvbench.cache.codecs.streaming import StreamFormat
from tests.mutants.core_mutant import Mutant
from tests.support import streams

pack, unrotated, outliers, of_groups = (
    StreamPayload._pack,
    StreamPayload._unrotated,
    StreamPayload._outliers,
    StreamPayload._of_groups,
)
pack_first, chunks, outlier_bytes, stream_logits = (
    StreamPayload._pack_first,
    Streamed._chunks,
    StreamFormat.outlier_bytes,
    Streamed.logits,
)


def one_scale_for_all(self: StreamPayload, entries: Tensor, position: Any) -> None:
    """Scale few bits as if they were many."""
    pack(self, entries, position)
    at = self.chunks - 1
    self.scale[:, :, at] *= (2 ** (self.how.bits - 1) - 1) / (2 ** (self.how.high - 1) - 1)


def average_first(self: StreamPayload, entries: Tensor, position: Any) -> None:
    """Compare with an average that the chunk is already part of."""
    numbers = unrotated(self, entries, position)
    largest = of_groups(self, numbers.abs().amax(dim=2))
    if self.chunks > 0:
        decay = self.how.rule.decay
        self.average.copy_(decay * self.average + (1 - decay) * largest)
    pack(self, entries, position)


def forgetful(self: StreamPayload, entries: Tensor, position: Any) -> None:
    """Begin each chunk with a new average."""
    before = self.chunks
    largest = of_groups(self, unrotated(self, entries, position).abs().amax(dim=2))
    if before > 0:
        self.average.copy_(largest)
    pack(self, entries, position)


def fading(self: StreamPayload, entries: Tensor, position: Any) -> None:
    """Let the average fade from chunk to chunk."""
    pack(self, entries, position)
    self.average *= 0.5


def as_they_come(self: StreamPayload, entries: Tensor, position: Any) -> Tensor:
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
    for first, each, numbers in chunks(self, dtype):
        yield first + self.how.rule.chunk if first == self.sinks else first, each, numbers


def free_index(self: StreamFormat, channels: int) -> int:
    """Forget that an outlier has a place."""
    return outlier_bytes(self, channels) - 4 * channels


def exact_ones_first(self: Streamed, rows: Tensor) -> Tensor:
    """Put the exact entries before the packed ones."""
    return stream_logits(self, rows).roll(self.exact, dims=-1)


def clipped(self: StreamPayload, entries: Tensor, position: Any) -> None:
    """Scale by the average alone."""
    how = self.how
    self.how = replace(how, rule=replace(how.rule, scale="ema"))
    pack(self, entries, position)
    self.how = how


_LOOPS = streams.chunks_equal_plain_loops

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
        patches=((StreamPayload, "_unrotated", as_they_come),),
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
