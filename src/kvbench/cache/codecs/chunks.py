"""Chunks of packed entries, as they are held and as attention reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from kvbench.cache.codecs.quantiser import Quantiser
from kvbench.cache.rotary import turn
from kvbench.kernels.packed import Packed, Rows
from kvbench.kernels.packing import packed_width

if TYPE_CHECKING:
    from kvbench.cache.codecs.streaming import StreamFormat

BLOCK = 32  # keys that are unpacked and rotated at once
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

    def _unrotated(self, entries: Tensor, position: Tensor | int | None) -> Tensor:
        wide: Tensor = entries.float()
        if self.how.rotary is None:
            return wide
        assert position is not None
        return turn(wide, -position, self.how.rotary)

    def _pack_first(self, entries: Tensor, position: Tensor | int | None) -> None:
        if self.sinks == 0:
            return
        at = position[:, :, : self.sinks] if isinstance(position, Tensor) else position
        numbers = self._unrotated(entries, at)
        missing = self.first.tokens - self.sinks  # a prompt shorter than that, or a single first token
        padded = torch.cat([numbers, numbers[:, :, :1].expand(-1, -1, missing, -1)], dim=2)
        codes, scale, _ = self.first.encode(padded)
        self.first_codes.narrow(2, 0, self.sinks).copy_(codes[:, :, : self.sinks])
        self.first_scale.copy_(scale)

    def _pack(self, entries: Tensor, position: Tensor | int | None) -> None:
        """Pack a chunk [B, G, chunk, D], and let the average follow."""
        rule = self.how.rule
        numbers = self._unrotated(entries, position)
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
        dim, size = self.exact.shape[3], self.how.rule.chunk
        runs: list[Tensor | Packed] = []
        if self.sinks > 0:
            form = self.first.form(dim)
            runs.append(Packed(form, self.first_codes[:, :, : self.sinks], self.first_scale, None, self.kernel))
        if self.chunks > 0:
            codes, scale = self.codes.narrow(2, 0, self.chunks * size), self.scale.narrow(2, 0, self.chunks)
            runs.append(Packed(self.normal.form(dim), codes, scale, None, self.kernel))
        return Streamed(
            packed=Rows(runs, self.dtype),
            outliers=self.outliers,
            sinks=self.sinks,
            how=self.how,
            rest=self.exact.narrow(2, 0, stop - self.packed),
            position=position[:, :, :stop],
        )

    def read(self, stop: int, position: Tensor | None = None) -> Tensor:
        """Return a copy of slots 0 .. stop as numbers [B, G, stop, D]."""
        assert position is not None
        made = self.entries(stop, position)
        return torch.cat([made.numbers(0, self.packed).to(self.dtype), made.rest], dim=2)

    def unused_bytes(self) -> int:
        """Return the bytes that the closed forms count for outliers that are none."""
        batch, heads, _, dim = self.exact.shape
        found = sum(len(each.index) for each in self.outliers)
        return self.how.outlier_bytes(self.chunks * batch * heads * dim - found)

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
        packed: first tokens and chunks, outlier channels empty.
        outliers: of each chunk.
        sinks: how many first tokens there are.
        how: they are written.
        rest: exact entries [B, G, r, D].
        position: of all entries [B, 1 or G, m].
    """

    packed: Rows
    outliers: Sequence[Outliers]
    sinks: int
    how: StreamFormat
    rest: Tensor
    position: Tensor

    @property
    def exact(self) -> int:
        """Entries that are as the model made them."""
        return self.rest.shape[2]

    @property
    def outlier_entries(self) -> float:
        """As many entries as outliers would fill."""
        batch, heads, _, dim = self.rest.shape
        return sum(len(each.index) for each in self.outliers) * self.how.rule.chunk / (batch * heads * dim)

    @property
    def sink_entries(self) -> int:
        """First entries."""
        return self.sinks

    @property
    def groups(self) -> int:
        """KV heads."""
        return self.rest.shape[1]

    def numbers(self, start: int, stop: int) -> Tensor:
        """Return packed entries start .. stop, rotated as the model had them [B, G, stop - start, D]."""
        wide = torch.promote_types(self.rest.dtype, torch.float32)
        if start == stop:
            return self.rest[:, :, :0].to(wide)
        out = self.packed.numbers(start, stop, wide)
        channels = out.transpose(2, 3).contiguous()
        for first, each, numbers in self._chunks(wide):
            low, high = max(first, start), min(first + numbers.shape[1], stop)
            if low < high and len(each.index) > 0:
                flat = channels[..., low - start : high - start].flatten(0, 2)
                flat[each.index] = numbers[:, low - first : high - first]
                channels[..., low - start : high - start] = flat.view(*channels.shape[:3], -1)
        out = channels.transpose(2, 3)
        if self.how.rotary is None:
            return out
        return turn(out, self.position[:, :, start:stop], self.how.rotary)

    def _chunks(self, dtype: torch.dtype) -> Iterator[tuple[int, Outliers, Tensor]]:
        """Yield where each chunk begins, its outliers, and their numbers [n, chunk]."""
        size = self.how.rule.chunk
        for at, each in enumerate(self.outliers):
            if len(each.index) > 0:
                yield self.sinks + at * size, each, each.numbers(dtype)

    def logits(self, rows: Tensor) -> Tensor:
        """Return the products of rows [B, G, g, D] with every entry [B, G, g, m], float32 or wider."""
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        packed = sum(self.packed.lengths)
        out = rows.new_empty((*rows.shape[:3], packed + self.exact))
        if self.how.rotary is not None:
            for start in range(0, packed, BLOCK):
                stop = min(packed, start + BLOCK)
                out[..., start:stop] = torch.matmul(rows, self.numbers(start, stop).transpose(-1, -2))
        elif packed > 0:
            out[..., :packed] = self.packed.logits(rows)
            channels, heads = rows.transpose(2, 3).flatten(0, 2), out.flatten(0, 1)
            for first, each, numbers in self._chunks(rows.dtype):
                index = each.index.long()
                mine = channels[index][:, :, None] * numbers[:, None]
                heads[:, :, first : first + numbers.shape[1]].index_add_(0, index // rows.shape[3], mine)
        out[..., packed:] = torch.matmul(rows, self.rest.to(rows.dtype).transpose(-1, -2))
        return out

    def weighted(self, weights: Tensor) -> Tensor:
        """Return the sum of the entries by weights [B, G, g, m], as [B, G, g, D]; not for what is rotated."""
        packed = sum(self.packed.lengths)
        out = torch.matmul(weights[..., packed:].to(self.rest.dtype), self.rest)
        if packed == 0:
            return out
        summed = self.packed.weighted(weights[..., :packed]).to(weights.dtype)
        width = summed.shape[3]
        channels, heads = summed.transpose(2, 3).flatten(0, 2), weights.flatten(0, 1)
        for first, each, numbers in self._chunks(weights.dtype):
            index = each.index.long()
            mine = heads[index // width][:, :, first : first + numbers.shape[1]]
            channels.index_add_(0, index, torch.einsum("ngt,nt->ng", mine, numbers))
        return out + channels.view(*summed.shape[:2], width, -1).transpose(2, 3).to(out.dtype)


def _symmetric(bits: int, along: Literal["channels", "tokens"], group: int) -> Quantiser:
    return Quantiser(bits=bits, along=along, group=group, symmetric=True, levels="integers")
