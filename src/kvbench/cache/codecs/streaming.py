"""Entries packed chunk by chunk with scales that follow the text, large channels and the first tokens in more bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvbench.cache.codecs.chunks import INDEX_BYTES, StreamPayload
from kvbench.cache.codecs.kernel import ReadByKernel
from kvbench.cache.codecs.sides import LayerSides
from kvbench.kernels.packing import PLANES, packed_width
from kvbench.types import ModelView


@dataclass(frozen=True, kw_only=True)
class Streaming(ReadByKernel):
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
        kernel: as in ReadByKernel.
    """

    is_exact: ClassVar[bool] = False
    writes_each_token_alone: ClassVar[bool] = False
    joins_heads: ClassVar[bool] = False
    joins_slots: ClassVar[bool] = False
    data_dependent: ClassVar[bool] = True
    takes_pieces: ClassVar[bool] = False

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

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        super().__post_init__()
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

    @property
    def flush_tokens(self) -> int:
        """Tokens that are packed at once while decoding."""
        return self.chunk

    def of_layer(self, view: ModelView, layer: int) -> LayerSides:
        """Return the codec of a layer, which knows how its keys are rotated."""
        rotary = view.layers[layer].rotary
        return LayerSides(
            key_format=StreamFormat(rule=self, bits=self.key_bits, high=self.key_bits_high, groups=-1, rotary=rotary),
            value_format=StreamFormat(
                rule=self, bits=self.value_bits, high=self.value_bits_high, groups=self.value_groups, rotary=None
            ),
            writes_each_token_alone=self.writes_each_token_alone,
            flush_tokens=self.flush_tokens,
            num_sink=self.num_sink,
            fixed_bytes=0,
        )

    def unsupported(self, view: ModelView) -> str | None:
        """Return why the kernel, or the groups of values, cannot be had, or None."""
        widths = {shape.value_dim for shape in view.layers}
        if any(width % self.value_groups for width in widths):
            return f"strategy.codec.value_groups={self.value_groups} does not divide {max(widths)} channels of a value"
        return super().unsupported(view)


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
