"""Chunks of packed entries, as they are held and as attention reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from kvbench.cache.codecs.quantiser import Quantiser
from kvbench.cache.rotary import channel_products, turn, turned_back
from kvbench.kernels.packed import Packed, Rows, Turned
from kvbench.kernels.packing import packed_width

if TYPE_CHECKING:
    from kvbench.cache.codecs.streaming import StreamFormat

INDEX_BYTES = torch.int32.itemsize


@dataclass(frozen=True)
class Outliers:
    """Channels of a chunk that are kept in more bits.

    Args:
        index: of B x G x D channels, int32 [n].
        rows: the channels, n rows of a number per token, of one batch and head.
    """

    index: Tensor
    rows: Packed

    def numbers(self, dtype: torch.dtype) -> Tensor:
        """Return what the codes stand for [n, tokens]."""
        return self.rows.dense(0, len(self.index), dtype)[0, 0]


class StreamPayload:
    """The first tokens, chunks of packed ones, and a ring of exact ones that do not fill a chunk yet.

    Args:
        how: entries are written.
        like: an example of entries [B, G, T, D].
        capacity: slots per row and head.
    """

    def __init__(self, how: StreamFormat, like: Tensor, capacity: int) -> None:
        batch, heads, _, dim = like.shape
        rule = how.rule
        self.how, self.capacity, self.dtype = how, capacity, like.dtype
        self.kernel = rule.kernel_on(like.device, like.dtype)
        self.exact = like.new_zeros((batch, heads, rule.chunk, dim))
        self.average = like.new_zeros((batch, heads, dim), dtype=torch.float32)
        self.filled = self.sinks = self.chunks = 0
        self.outliers: list[Outliers] = []
        self.normal = _symmetric(how.bits, along="tokens", group=rule.chunk)
        self.first = _symmetric(how.high, along="tokens", group=max(2, rule.num_sink))
        self.outlying = _symmetric(how.high, along="channels", group=0)
        size = (batch, heads, rule.num_sink, packed_width(dim, how.high))
        self.first_codes = like.new_zeros(size, dtype=torch.uint8)
        self.first_scale = like.new_zeros((batch, heads, min(1, rule.num_sink), dim), dtype=torch.float16)
        self._allocate(how.chunks(capacity))

    def _allocate(self, chunks: int) -> None:
        batch, heads, tokens, dim = self.exact.shape
        width = packed_width(dim, self.how.bits)
        self.codes = self.exact.new_zeros((batch, heads, chunks * tokens, width), dtype=torch.uint8)
        self.scale = self.exact.new_zeros((batch, heads, chunks, dim), dtype=torch.float16)

    @property
    def packed(self) -> int:
        """Slots whose entries are packed."""
        return self.sinks + self.chunks * self.how.rule.chunk

    def write(self, start: int, entries: Tensor, position: Tensor | int | None = None) -> None:
        """Store entries [B, G, T, D] at slots start .. start + T: a prompt, or one that follows."""
        count, size = entries.shape[2], self.how.rule.chunk
        self.filled = start + count
        if start == 0:
            self.sinks = min(count, self.how.rule.num_sink)
            self._pack_first(entries[:, :, : self.sinks], position)
            for first in range(self.sinks, count - size + 1, size):
                at = position[:, :, first : first + size] if isinstance(position, Tensor) else position
                self._pack(entries[:, :, first : first + size], at)
        rest = entries[:, :, max(0, self.packed - start) :]
        if rest.shape[2] == 1:
            self.exact.select(2, (self.filled - 1 - self.sinks) % size).copy_(rest[:, :, 0])
        elif rest.shape[2] > 1:
            self.exact.narrow(2, 0, rest.shape[2]).copy_(rest)

    def scatter(self, slot: Tensor, entry: Tensor, position: Tensor | int | None = None) -> None:
        """Never called: entries cannot be written alone."""
        raise AssertionError

    def settle(self, position: Tensor) -> None:
        """Pack the exact entries, if they fill a chunk."""
        size = self.how.rule.chunk
        if self.filled - self.packed == size:
            self._pack(self.exact, position[:, :, self.packed : self.packed + size])

    def _pack_first(self, entries: Tensor, position: Tensor | int | None) -> None:
        if self.sinks == 0:
            return
        at = position[:, :, : self.sinks] if isinstance(position, Tensor) else position
        numbers = turned_back(entries, at, self.how.rotary)
        missing = self.first.tokens - self.sinks  # a prompt shorter than that, or a single first token
        padded = torch.cat([numbers, numbers[:, :, :1].expand(-1, -1, missing, -1)], dim=2)
        codes, scale, _ = self.first.encode(padded)
        self.first_codes.narrow(2, 0, self.sinks).copy_(codes[:, :, : self.sinks])
        self.first_scale.copy_(scale)

    def _pack(self, entries: Tensor, position: Tensor | int | None) -> None:
        """Pack a chunk [B, G, chunk, D], and let the average follow."""
        rule = self.how.rule
        numbers = turned_back(entries, position, self.how.rotary)
        largest = self._of_groups(numbers.abs().amax(dim=2))
        before = self.average if self.chunks > 0 else largest
        average = rule.decay * before + (1 - rule.decay) * largest
        is_outlier = torch.zeros_like(largest, dtype=torch.bool)
        if rule.outlier_above > 0:
            is_outlier |= largest > rule.outlier_above
        if rule.outlier_growth > 0 and self.chunks > 0:
            is_outlier |= largest > rule.outlier_growth * before
        reach = torch.maximum(average, largest) if rule.scale == "max" else average
        normal = numbers.masked_fill(is_outlier[:, :, None], 0.0)
        codes, scale, _ = self.normal.encode(normal, reach[:, :, None])
        self.codes.narrow(2, self.chunks * rule.chunk, rule.chunk).copy_(codes)
        self.scale.narrow(2, self.chunks, 1).copy_(scale)
        self.outliers.append(self._outliers(numbers, is_outlier))
        self.average.copy_(average)
        self.chunks += 1

    def _of_groups(self, largest: Tensor) -> Tensor:
        """Return for each channel [B, G, D] the largest number of the channels it is judged with."""
        groups, dim = self.how.groups, largest.shape[2]
        if groups == -1:
            return largest
        each: Tensor = largest.unflatten(2, (groups, -1)).amax(dim=-1)
        return each.repeat_interleave(dim // groups, dim=-1)

    def _outliers(self, numbers: Tensor, is_outlier: Tensor) -> Outliers:
        index = is_outlier.flatten().nonzero()[:, 0]
        mine = numbers.transpose(2, 3).flatten(0, 2)[index]
        codes, scale, _ = self.outlying.encode(mine[None, None])
        form = self.outlying.form(self.how.rule.chunk)
        return Outliers(index.int(), Packed(form, codes, scale, None, self.kernel))

    def entries(self, stop: int, position: Tensor) -> Streamed:
        """Return what attention reads of slots 0 .. stop."""
        batch, heads, size, dim = self.exact.shape
        runs: list[Tensor | Packed] = []
        if self.sinks > 0:
            codes, turned = self.first_codes.narrow(2, 0, self.sinks), self._turned(position[:, :, : self.sinks])
            runs.append(Packed(self.first.form(dim), codes, self.first_scale, None, self.kernel, turned=turned))
        if self.chunks > 0:
            codes, scale = self.codes.narrow(2, 0, self.chunks * size), self.scale.narrow(2, 0, self.chunks)
            turned = self._turned(position[:, :, self.sinks : self.packed])
            runs.append(Packed(self.normal.form(dim), codes, scale, None, self.kernel, turned=turned))
        return Streamed(
            rows=Rows([*runs, self.exact.narrow(2, 0, stop - self.packed)], self.dtype),
            outliers=self.outliers,
            turned=self._turned(position[:, :, : self.packed]),
            sink_entries=self.sinks,
            outlier_entries=self._outlier_channels * size / (batch * heads * dim),
        )

    def _turned(self, position: Tensor) -> Turned | None:
        rotary = self.how.rotary
        return None if rotary is None else Turned(position=position, inverse_frequency=rotary)

    def read(self, stop: int, position: Tensor | None = None) -> Tensor:
        """Return a copy of slots 0 .. stop as numbers [B, G, stop, D]."""
        assert position is not None
        return self.entries(stop, position).numbers().to(self.dtype)

    @property
    def _outlier_channels(self) -> int:
        return sum(len(each.index) for each in self.outliers)

    def unused_bytes(self) -> int:
        """Return the bytes that the closed forms count for outliers that are none."""
        batch, heads, _, dim = self.exact.shape
        return self.how.outlier_bytes(self.chunks * batch * heads * dim - self._outlier_channels)

    def grow(self, capacity: int, used: int) -> None:
        """Move to storage for `capacity` slots; the old storage is freed."""
        codes, scale = self.codes, self.scale
        self.capacity = capacity
        self._allocate(self.how.chunks(capacity))
        self.codes.narrow(2, 0, codes.shape[2]).copy_(codes)
        self.scale.narrow(2, 0, scale.shape[2]).copy_(scale)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held."""
        mine = (self.first_codes, self.first_scale, self.codes, self.scale, self.exact, self.average)
        return (*mine, *(t for each in self.outliers for t in (each.index, each.rows.codes, each.rows.scale)))

    def snapshot(self) -> object:
        """Return what `restore` needs to take back entries appended later."""
        return self.filled, self.sinks, self.chunks, self.exact.clone(), self.average.clone()

    def restore(self, snapshot: object) -> None:
        """Go back to a snapshot, in the same storage."""
        exact: Tensor
        average: Tensor
        self.filled, self.sinks, self.chunks, exact, average = snapshot  # type: ignore[misc]
        self.exact.copy_(exact)
        self.average.copy_(average)
        del self.outliers[self.chunks :]


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """Keys or values as attention reads them.

    Args:
        rows: first tokens and chunks, outlier channels empty, and exact entries.
        outliers: of each chunk.
        turned: how first tokens and chunks are rotated, or None.
        sink_entries: how many first tokens there are.
        outlier_entries: as many entries as outliers would fill.
    """

    rows: Rows
    outliers: Sequence[Outliers]
    turned: Turned | None
    sink_entries: int
    outlier_entries: float

    @property
    def exact(self) -> int:
        """Entries that are as the model made them."""
        return self.rows.exact

    @property
    def groups(self) -> int:
        """KV heads."""
        return self.rows.groups

    def numbers(self) -> Tensor:
        """Return all entries as the model had them [B, G, m, D], float32 or wider."""
        wide = torch.promote_types(self.rows.dtype, torch.float32)
        runs = [replace(part, turned=None) if isinstance(part, Packed) else part for part in self.rows.parts]
        length = sum(self.rows.lengths)
        channels = Rows(runs, self.rows.dtype).numbers(0, length, wide).transpose(2, 3).contiguous()
        for first, each, numbers in self._chunks(wide):
            channels.flatten(0, 2)[each.index.long(), first : first + numbers.shape[1]] = numbers
        out = channels.transpose(2, 3)
        if self.turned is not None:
            packed = out[:, :, : length - self.exact]
            packed.copy_(turn(packed, self.turned.position, self.turned.inverse_frequency))
        return out

    def _chunks(self, dtype: torch.dtype) -> Iterator[tuple[int, Outliers, Tensor]]:
        """Yield where each chunk begins, its outliers, and their numbers [n, chunk]."""
        for at, each in enumerate(self.outliers):
            if len(each.index) > 0:
                yield self.sink_entries + at * each.rows.form.dim, each, each.numbers(dtype)

    def logits(self, rows: Tensor) -> Tensor:
        """Return the products of rows [B, G, g, D] with every entry [B, G, g, m], float32 or wider."""
        out = self.rows.logits(rows)
        rows, heads = rows.to(out.dtype), out.flatten(0, 1)
        channels = rows.transpose(2, 3).flatten(0, 2)
        for first, each, numbers in self._chunks(out.dtype):
            index, chunk = each.index.long(), slice(first, first + numbers.shape[1])
            if self.turned is None:
                made = channels[index][:, :, None]
            else:
                position = self.turned.position[:, :, chunk]
                made = channel_products(rows, index, position, self.turned.inverse_frequency)
            heads[:, :, chunk].index_add_(0, index // rows.shape[3], made * numbers[:, None])
        return out

    def weighted(self, weights: Tensor) -> Tensor:
        """Return the sum of the entries by weights [B, G, g, m], as [B, G, g, D]; not for what is rotated."""
        summed = self.rows.weighted(weights).to(weights.dtype)
        width = summed.shape[3]
        channels, heads = summed.transpose(2, 3).flatten(0, 2), weights.flatten(0, 1)
        for first, each, numbers in self._chunks(weights.dtype):
            index, chunk = each.index.long(), slice(first, first + numbers.shape[1])
            mine = heads[:, :, chunk][index // width]
            channels.index_add_(0, index, torch.einsum("ngt,nt->ng", mine, numbers))
        return channels.view(*summed.shape[:2], width, -1).transpose(2, 3).to(self.rows.dtype)


def _symmetric(bits: int, along: Literal["channels", "tokens"], group: int) -> Quantiser:
    return Quantiser(bits=bits, along=along, group=group, symmetric=True, levels="integers", clip=1.0, scales="float16")
