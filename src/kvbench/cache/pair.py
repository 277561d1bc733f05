"""Two neighbouring layers that share the directions of their prompt's keys and values, read without restoring them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvbench.cache.plan import LayerPlan, score_dtype
from kvbench.cache.protocols import Layout
from kvbench.cache.slots import Slots
from kvbench.kernels.attend import EMPTY, Own, Tile
from kvbench.types import LayerShape, RunShape

if TYPE_CHECKING:
    from kvbench.cache.layer import CacheLayer

BLOCK = 1024  # tokens merged at once: what exists twice, and wider than it is kept


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A layer's part in a pair.

    Args:
        layout: how the two are merged.
        is_upper: whether this is the later one of the two, which accounts for what both hold of the prompt.
    """

    layout: Layout
    is_upper: bool

    def allocated_bytes(self, shape: LayerShape, run: RunShape, dtype: torch.dtype) -> int:
        """Return the bytes held of the prompt of both layers."""
        retained = max(self._counts(run))
        columns, rows = run.batch_size * run.prompt_tokens, run.batch_size * retained
        return self._bytes(shape, dtype, columns, rows, 2) if self.is_upper else 0

    def used_bytes(self, shape: LayerShape, run: RunShape, dtype: torch.dtype) -> int:
        """Return the same without padding."""
        tokens, rows = sum(run.prompt_lengths), sum(self._counts(run))
        return self._bytes(shape, dtype, tokens, rows, 2) if self.is_upper else 0

    def read_bytes(self, shape: LayerShape, run: RunShape, dtype: torch.dtype) -> int:
        """Return what one layer reads of the prompt."""
        return self._bytes(shape, dtype, sum(run.prompt_lengths), sum(self._counts(run)), 1)

    def _counts(self, run: RunShape) -> list[int]:
        return [self.layout.num_retained(length) for length in run.prompt_lengths]

    def _bytes(self, shape: LayerShape, dtype: torch.dtype, tokens: int, retained: int, layers: int) -> int:
        row = shape.kv_heads * (shape.key_dim + shape.value_dim) * dtype.itemsize
        sets = 1 if self.layout.by_token else shape.kv_heads
        lengths, index = 2 * sets * dtype.itemsize, 2 * sets * torch.int64.itemsize
        return tokens * (row + torch.int32.itemsize + layers * lengths) + retained * (index + layers * row)


@dataclass(frozen=True, kw_only=True)
class Shared:
    """The keys, or the values, of both layers' prompt.

    Args:
        directions: one for both layers [B, G, n, D].
        lengths: of each layer's vectors, or of all heads' together [B, 1 or G, n].
        index: tokens that both layers keep as they are [B, 1 or G, r].
        own: each layer's rows of these tokens [B, G, r, D].
    """

    directions: Tensor
    lengths: tuple[Tensor, Tensor]
    index: Tensor
    own: tuple[Tensor, Tensor]

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held."""
        return (self.directions, *self.lengths, self.index, *self.own)


def share(layout: Layout, run: RunShape, position: Tensor, lower: Tensor, upper: Tensor, *, is_value: bool) -> Shared:
    """Merge the keys, or the values, of two layers.

    Args:
        layout: how.
        run: how long the rows are.
        position: of the tokens [B, 1, n]; -1 at padding.
        lower: of the lower layer [B, G, n, D].
        upper: of the upper layer [B, G, n, D].
        is_value: whether the lengths of retained tokens are set to 0, as their directions count for nothing.
    """
    directions, tokens = torch.empty_like(lower, memory_format=torch.contiguous_format), lower.shape[2]
    over = (1, 3) if layout.by_token else (3,)
    angles, lengths = [], []
    for start in range(0, tokens, BLOCK):
        block = slice(start, start + BLOCK)
        direction, angle = layout.merge(lower[:, :, block], upper[:, :, block])
        directions[:, :, block] = direction
        angles.append(angle)
        parts = (layer[:, :, block].to(score_dtype(layer.dtype)) for layer in (lower, upper))
        lengths.append([part.square().sum(dim=over, keepdim=True).sqrt()[..., 0] for part in parts])
    counts = [layout.num_retained(length) for length in run.prompt_lengths]
    index = layout.retain(torch.cat(angles, dim=2), position, max(counts))
    if min(counts) < max(counts):  # a shorter row's first column is padding, which nothing sees
        spare = torch.arange(max(counts)) >= torch.tensor(counts)[:, None, None]
        index = index.masked_fill(spare.to(index.device), 0)
    both = [torch.cat(parts, dim=2).to(lower.dtype) for parts in zip(*lengths, strict=True)]
    if is_value:
        both = [of_layer.scatter(2, index, 0.0) for of_layer in both]
    heads, width = lower.shape[1], lower.shape[3]
    at = index.expand(-1, heads, -1)[..., None].expand(-1, -1, -1, width)
    own = (lower.gather(2, at), upper.gather(2, at))
    return Shared(directions=directions, lengths=(both[0], both[1]), index=index, own=own)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The prompt of two layers.

    Args:
        keys: of both.
        values: of both.
        position: [B, 1, n]; -1 at padding.
        has_holes: whether there is padding.
    """

    keys: Shared
    values: Shared
    position: Tensor
    has_holes: bool

    def tile(self, layer: int) -> Tile:
        """Return what attention of the lower layer (0) or the upper one (1) reads."""
        return Tile(
            self.keys.directions,
            self.values.directions,
            visible=(self.position != EMPTY) if self.has_holes else None,
            key_scale=self.keys.lengths[layer],
            value_scale=self.values.lengths[layer],
            own_keys=Own(self.keys.index, self.keys.own[layer]),
            own_values=Own(self.values.index, self.values.own[layer]),
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held."""
        return (*self.keys.tensors(), *self.values.tensors(), self.position)


class Half:
    """One layer's side of a shared prompt, before the entries that follow it.

    Args:
        prompt: of both layers.
        pair: which of them this is.
        plan: of this layer.
        run: how long the rows are.
    """

    def __init__(self, prompt: Prompt, pair: Pair, plan: LayerPlan, run: RunShape) -> None:
        self.prompt, self.pair, self.plan, self.run = prompt, pair, plan, run

    def start(self, slots: Slots) -> None:
        """Do nothing: the prompt is at hand."""

    def tiles(self, query: Tensor, slots: Slots) -> list[Tile]:
        """Return the prompt and what followed it."""
        return [self.prompt.tile(int(self.pair.is_upper)), *slots.tiles()]

    def grow(self, capacity: int) -> None:
        """Do nothing: a prompt does not grow."""

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held, the other layer's part included."""
        return self.prompt.tensors()

    def held(self, position: Tensor) -> Tensor:
        """Return the positions held [B, 1, m], given those in slots."""
        return torch.cat([self.prompt.position, position], dim=2)

    def used_bytes(self, entries: Sequence[int]) -> int:
        """Return the bytes of the prompt: of both layers in the upper one, none in the lower one."""
        return self.pair.used_bytes(self.plan.shape, self.run, self._dtype)

    def read_bytes(self, entries: Sequence[int], slot_bytes: int) -> int:
        """Return the bytes a decode step reads; the directions count once in each layer."""
        prompt = self.pair.read_bytes(self.plan.shape, self.run, self._dtype)
        return prompt + sum(entries) * slot_bytes

    @property
    def _dtype(self) -> torch.dtype:
        return self.prompt.keys.directions.dtype

    def snapshot(self, filled: int) -> None:
        """Return nothing: a prompt does not change."""

    def restore(self, snapshot: object, filled: int) -> None:
        """Do nothing."""


class Meeting:
    """Where the lower layer of a pair waits, its prompt in hand, until the upper one has read its own."""

    def __init__(self) -> None:
        self._lower: tuple[CacheLayer, Tensor, Tensor] | None = None

    def arrive(self, layer: CacheLayer, keys: Tensor, values: Tensor, position: Tensor) -> None:
        """Wait; with the upper layer, merge both prompts and let both layers go on from there.

        Args:
            layer: that has read its prompt.
            keys: of its prompt [B, G, n, D].
            values: of its prompt [B, G, n, D_v].
            position: [B, 1, n]; -1 at padding.
        """
        if self._lower is None:
            self._lower = layer, keys, values
            return
        lower, lower_keys, lower_values = self._lower
        self._lower, pair, run = None, layer.plan.pair, layer.run
        assert pair is not None
        prompt = Prompt(
            keys=share(pair.layout, run, position, lower_keys, keys, is_value=False),
            values=share(pair.layout, run, position, lower_values, values, is_value=True),
            position=position.clone(),
            has_holes=layer.padding is not None,
        )
        lower.go_on_from(prompt, keys, values)
        layer.go_on_from(prompt, keys, values)
