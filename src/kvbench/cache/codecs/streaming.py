"""Entries packed chunk by chunk with scales that follow the text, large channels and the first tokens in more bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvbench.cache.codecs.packed import kernel_on
from kvbench.cache.codecs.quantiser import Quantiser
from kvbench.cache.rotary import turn
from kvbench.kernels.packed import Form, Kernel, Packed, Rows, why_not
from kvbench.kernels.packing import PLANES, pack, packed_width, unpack
from kvbench.types import ModelView

BLOCK = 32  # keys that are unpacked and rotated at once
INDEX_BYTES = torch.int32.itemsize


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """A chunk's scales are a moving average of the largest numbers so far; what outgrows it is kept in more bits.

    Keys are packed by channel as they were before rotation. A chunk is packed when it is full; tokens that do not
    fill one yet are exact.

    Args:
        chunk: tokens that share scales.
        decay: of the moving average, from 0 to below 1.
        outlier_above: size above which a channel is an outlier; 0 for no such limit.
        outlier_growth: times the average before it; 0 for no such limit.
        num_sink: first tokens, which have scales of their own.
        key_bits: of keys: 2, 3, 4 or 8.
        key_bits_high: of keys in outlier channels and of the first tokens.
        value_bits: of values.
        value_bits_high: of values in outlier channels and of the first tokens.
        value_groups: channels of a value that are judged together: -1 each alone, 1 all of a head, n in n groups.
        scale: "max" of the average and the chunk's own largest number, or "ema", which clips what is above it.
        kernel: as in PackedCodec.
    """

    is_exact: ClassVar[bool] = False
    writes_each_token_alone: ClassVar[bool] = False
    joins_heads: ClassVar[bool] = False
    data_dependent: ClassVar[bool] = True

    chunk: int
    decay: float
    outlier_above: float
    outlier_growth: float
    num_sink: int
    key_bits: int
    key_bits_high: int
    value_bits: int
    value_bits_high: int
    value_groups: int
    scale: Literal["max", "ema"]
    kernel: Literal["auto", "native", "reference"]

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if self.chunk < 2 or self.num_sink < 0:
            raise ValueError(
                f"strategy.codec.chunk must be at least 2, and strategy.codec.num_sink 0 or more; got {self.chunk} and "
                f"{self.num_sink}."
            )
        if not 0 <= self.decay < 1 or not self.outlier_above >= 0 or not self.outlier_growth >= 0:
            raise ValueError(
                f"strategy.codec.decay must be from 0 to below 1, strategy.codec.outlier_above and "
                f"strategy.codec.outlier_growth 0 or more; got {self.decay}, {self.outlier_above} and "
                f"{self.outlier_growth}."
            )
        possible = sorted(PLANES.keys() - {1, 16})
        for name in ("key_bits", "key_bits_high", "value_bits", "value_bits_high"):
            if getattr(self, name) not in possible:
                raise ValueError(f"strategy.codec.{name} must be one of {possible}; got {getattr(self, name)}.")
        if self.value_groups != -1 and self.value_groups < 1:
            raise ValueError(
                f"strategy.codec.value_groups must be -1 (each channel alone) or at least 1; got {self.value_groups}."
            )
        if self.scale not in ("max", "ema"):
            raise ValueError(f"strategy.codec.scale must be max or ema; got {self.scale!r}.")
        if self.kernel not in ("auto", "native", "reference"):
            raise ValueError(f"strategy.codec.kernel must be auto, native or reference; got {self.kernel!r}.")

    @property
    def flush_tokens(self) -> int:
        """Tokens that are packed at once while decoding."""
        return self.chunk

    def of_layer(self, view: ModelView, layer: int) -> StreamingLayer:
        """Return the codec of a layer, which knows how its keys are rotated."""
        rotary = view.layers[layer].rotary
        return StreamingLayer(
            key_format=StreamFormat(rule=self, bits=self.key_bits, high=self.key_bits_high, groups=-1, rotary=rotary),
            value_format=StreamFormat(
                rule=self, bits=self.value_bits, high=self.value_bits_high, groups=self.value_groups, rotary=None
            ),
        )

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> Kernel:
        """Return what reads packed entries of a model with this dtype on this device."""
        return kernel_on(self.kernel, device, dtype)

    def unsupported(self, view: ModelView) -> str | None:
        """Return why the kernel, or the groups of values, cannot be had, or None."""
        widths = {shape.value_dim for shape in view.layers}
        if any(width % self.value_groups for width in widths):
            return f"strategy.codec.value_groups={self.value_groups} does not divide {max(widths)} channels of a value"
        reason = None if self.kernel == "auto" else why_not(self.kernel, view.device, view.dtype)
        return None if reason is None else f"{reason}; set strategy.codec.kernel=auto or reference"


@dataclass(frozen=True, kw_only=True)
class StreamingLayer:
    """Both sides of a layer.

    Args:
        key_format: of keys.
        value_format: of values.
    """

    is_exact: ClassVar[bool] = False
    writes_each_token_alone: ClassVar[bool] = False
    fixed_bytes: ClassVar[int] = 0

    key_format: StreamFormat
    value_format: StreamFormat

    @property
    def flush_tokens(self) -> int:
        """Tokens that are packed at once while decoding."""
        return self.key_format.rule.chunk


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamFormat:
    """One side of a layer.

    Args:
        rule: what both sides have in common.
        bits: of most numbers.
        high: bits of outlier channels and first tokens.
        groups: channels that are judged together, as in Streaming.
        rotary: inverse frequencies, where entries come rotated [rotary_dim / 2]; or None.
    """

    rule: Streaming
    bits: int
    high: int
    groups: int
    rotary: Tensor | None

    def empty(self, like: Tensor, capacity: int) -> StreamPayload:
        """Return room for `capacity` entries shaped as `like` [B, G, T, D]."""
        return StreamPayload(self, like, capacity)

    def chunks(self, entries: int) -> int:
        """Return how many chunks of so many entries are packed."""
        return max(0, entries - self.rule.num_sink) // self.rule.chunk

    def outlier_bytes(self, channels: int) -> int:
        """Return the bytes of so many outlier channels of a chunk."""
        return channels * (packed_width(self.rule.chunk, self.high) + torch.float16.itemsize + INDEX_BYTES)

    def allocated_bytes(self, heads: int, dim: int, capacity: int, dtype: torch.dtype) -> int:
        """Return the bytes of room for so many entries of so many heads, if all channels of all chunks are outliers."""
        exact = self.rule.chunk * dim * dtype.itemsize
        return heads * (self._packed_bytes(dim, self.chunks(capacity), self.rule.num_sink) + exact)

    def used_bytes(self, heads: int, dim: int, entries: int, dtype: torch.dtype) -> int:
        """Return the bytes of so many entries of so many heads, if all channels of all chunks are outliers."""
        sinks = min(entries, self.rule.num_sink)
        chunks = self.chunks(entries)
        exact = (entries - sinks - chunks * self.rule.chunk) * dim * dtype.itemsize
        return heads * (self._packed_bytes(dim, chunks, sinks) + exact)

    def _packed_bytes(self, dim: int, chunks: int, sinks: int) -> int:
        scales, average = dim * torch.float16.itemsize, dim * torch.float32.itemsize
        normal = self.rule.chunk * packed_width(dim, self.bits) + scales + self.outlier_bytes(dim)
        first = sinks * packed_width(dim, self.high) + (scales if self.rule.num_sink > 0 else 0)
        return chunks * normal + first + average


@dataclass(frozen=True)
class Outliers:
    """Channels of a chunk that are kept in more bits.

    Args:
        index: of B x G x D channels, int32 [n].
        codes: packed along the chunk's tokens, uint8 [n, w].
        scale: float16 [n].
    """

    index: Tensor
    codes: Tensor
    scale: Tensor

    def numbers(self, bits: int, tokens: int, dtype: torch.dtype) -> Tensor:
        """Return what the codes stand for [n, tokens]."""
        codes = unpack(self.codes, bits, tokens).to(dtype) - (2 ** (bits - 1) - 1)
        numbers: Tensor = codes * self.scale.to(dtype)[:, None]
        return numbers


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
        self.kernel = kernel_on(rule.kernel, like.device, like.dtype)
        self.exact = like.new_zeros((batch, heads, rule.chunk, dim))
        self.average = like.new_zeros((batch, heads, dim), dtype=torch.float32)
        self.filled = self.sinks = self.chunks = 0
        self.outliers: list[Outliers] = []
        self.first = Quantiser(
            bits=how.high, along="tokens", group=max(2, rule.num_sink), symmetric=True, levels="integers"
        )
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
        how, rule = self.how, self.how.rule
        numbers = self._unrotated(entries, position)
        largest = self._of_groups(numbers.abs().amax(dim=2))
        before = self.average if self.chunks > 0 else largest
        average = rule.decay * before + (1 - rule.decay) * largest
        is_outlier = torch.zeros_like(largest, dtype=torch.bool)
        if rule.outlier_above > 0:
            is_outlier |= largest > rule.outlier_above
        if rule.outlier_growth > 0 and self.chunks > 0:
            is_outlier |= largest > rule.outlier_growth * before
        most = 2 ** (how.bits - 1) - 1
        scale = ((torch.maximum(average, largest) if rule.scale == "max" else average) / most).half()
        scale = torch.where(scale == 0, 1.0, scale)
        codes = (numbers / scale.float()[:, :, None]).round_().clamp_(-most, most)
        codes.masked_fill_(is_outlier[:, :, None], 0.0)
        size = rule.chunk
        self.codes.narrow(2, self.chunks * size, size).copy_(pack((codes + most).to(torch.uint8), how.bits))
        self.scale.select(2, self.chunks).copy_(scale)
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
        high = self.how.high
        index = is_outlier.flatten().nonzero()[:, 0]
        mine = numbers.transpose(2, 3).flatten(0, 2)[index]
        most = 2 ** (high - 1) - 1
        scale = (mine.abs().amax(dim=1) / most).half()
        scale = torch.where(scale == 0, 1.0, scale)
        codes = (mine / scale.float()[:, None]).round_().clamp_(-most, most) + most
        return Outliers(index.int(), pack(codes.to(torch.uint8), high), scale)

    def entries(self, stop: int, position: Tensor) -> Streamed:
        """Return what attention reads of slots 0 .. stop."""
        how, dim, runs = self.how, self.exact.shape[3], []
        if self.sinks > 0:
            form = self.first.form(dim)
            runs.append(Packed(form, self.first_codes[:, :, : self.sinks], self.first_scale, None, self.kernel))
        if self.chunks > 0:
            size = how.rule.chunk
            form = Form(dim=dim, bits=how.bits, tokens=size, channels=1, symmetric=True, is_float=False)
            codes, scale = self.codes.narrow(2, 0, self.chunks * size), self.scale.narrow(2, 0, self.chunks)
            runs.append(Packed(form, codes, scale, None, self.kernel))
        return Streamed(
            packed=Rows(runs, self.dtype),
            outliers=self.outliers,
            sinks=self.sinks,
            how=how,
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
        return (*mine, *(t for each in self.outliers for t in (each.index, each.codes, each.scale)))

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
                yield self.sinks + at * size, each, each.numbers(self.how.high, size, dtype)

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
