"""Entries kept as their coordinates along a few directions that the heads of a layer share."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.cache.codecs.base import Codec, Format
from kvbench.cache.rotary import turn, turned_back
from kvbench.kernels.packed import Rows
from kvbench.types import ModelView, Projection

ROUNDED_TO = 8  # ranks are multiples of this
LEAST_SINGULAR = 1e-6  # of the largest singular value; smaller ones count as this
BLOCK = 32  # keys that are restored at once where they have to be rotated


@dataclass(frozen=True, eq=False)
class Basis:
    """Directions that the keys, or the values, of a layer lie along.

    Args:
        directions: orthonormal over all heads [G, D, r].
        bias: what was added to entries before they were cached [G, D], or None.
        rotary: inverse frequencies, where entries were rotated after that [rotary_dim / 2]; or None.
    """

    directions: Tensor
    bias: Tensor | None
    rotary: Tensor | None

    @property
    def rank(self) -> int:
        """How many directions there are."""
        return self.directions.shape[2]


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """Keys and values lie in the column space of the weights that make them, cut to the directions that matter most.

    Layers differ: one is cut the more, the smaller the product of its weights' condition numbers and those of all
    layers after it, which the layers' errors are amplified by.

    Args:
        most: share of the full rank that the layer with the largest product keeps.
        least: share that the one with the smallest keeps.
        latent: how coordinates are written; packs each token alone.
    """

    is_exact: ClassVar[bool] = False
    data_dependent: ClassVar[bool] = False
    joins_heads: ClassVar[bool] = True
    joins_slots: ClassVar[bool] = True

    most: float
    least: float
    latent: Codec

    def __post_init__(self) -> None:
        """Refuse shares and latents that cannot be."""
        if not 0 < self.least <= self.most <= 1:
            raise ValueError(
                f"strategy.codec.least must be above 0, at most strategy.codec.most, and that at most 1; got "
                f"{self.least} and {self.most}."
            )
        if not self.latent.writes_each_token_alone or self.latent.joins_heads:
            raise ValueError(
                "strategy/codec@strategy.codec.latent must write each token alone, along directions of no other codec; "
                "use float16, int8, int4 or dense."
            )

    @property
    def writes_each_token_alone(self) -> bool:
        """Whether an entry can be written, and overwritten, without any other."""
        return True

    @property
    def flush_tokens(self) -> int:
        """Tokens that are packed at once while decoding."""
        return 1

    def of_layer(self, view: ModelView, layer: int) -> LatentCodec:
        """Return the codec of a layer, with its directions."""
        rank = ranks(view, self.most, self.least)[layer]
        shape, inner = view.layers[layer], self.latent.of_layer(view, layer)
        assert shape.key_projection is not None
        assert shape.value_projection is not None
        keys, values = _basis(shape.key_projection, rank), _basis(shape.value_projection, rank)
        return LatentCodec(
            key_format=LatentFormat(replace(keys, rotary=shape.rotary), inner.key_format),
            value_format=LatentFormat(values, inner.value_format),
        )

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Return what reads the coordinates of a model with this dtype on this device."""
        return self.latent.kernel_on(device, dtype)

    def unsupported(self, view: ModelView) -> str | None:
        """Return why the weights behind keys and values are not known, or None."""
        for index, shape in enumerate(view.layers):
            if shape.key_projection is None or shape.value_projection is None:
                return (
                    f"strategy/codec=lorc needs keys and values that are a projection of hidden states, and those of "
                    f"layer {index} are not, or it was not found; use another strategy/codec"
                )
            if shape.key_projection.weight.is_meta:
                return None  # the model is not loaded
        return self.latent.unsupported(view)


@dataclass(frozen=True, kw_only=True)
class LatentCodec:
    """Both sides of a layer.

    Args:
        key_format: of keys.
        value_format: of values.
    """

    is_exact: ClassVar[bool] = False
    writes_each_token_alone: ClassVar[bool] = True
    num_sink: ClassVar[int] = 0
    flush_tokens: ClassVar[int] = 1

    key_format: LatentFormat
    value_format: LatentFormat

    @property
    def fixed_bytes(self) -> int:
        """Bytes of the directions."""
        return sum(side.basis.directions.nbytes for side in (self.key_format, self.value_format))


@dataclass(frozen=True)
class LatentFormat:
    """One side of a layer.

    Args:
        basis: directions.
        inner: how coordinates are written.
    """

    basis: Basis
    inner: Format

    def empty(self, like: Tensor, capacity: int) -> LatentPayload:
        """Return room for `capacity` entries shaped as `like` [B, G, T, D]."""
        return LatentPayload(self, like, capacity)

    def allocated_bytes(self, heads: int, dim: int, capacity: int, dtype: torch.dtype) -> int:
        """Return the bytes of room for so many entries of all heads, metadata included."""
        return self.inner.allocated_bytes(1, self.basis.rank, capacity, dtype)

    def used_bytes(self, heads: int, dim: int, entries: int, dtype: torch.dtype) -> int:
        """Return the bytes of so many entries of all heads, metadata included."""
        return self.inner.used_bytes(1, self.basis.rank, entries, dtype)


class LatentPayload:
    """Coordinates of entries; keys lose their rotation when they are written.

    Args:
        how: entries are written.
        like: an example of entries [B, G, T, D].
        capacity: slots per row.
    """

    def __init__(self, how: LatentFormat, like: Tensor, capacity: int) -> None:
        self.how, self.dtype = how, like.dtype
        self.inner = how.inner.empty(like.new_empty((like.shape[0], 1, 0, how.basis.rank)), capacity)

    @property
    def capacity(self) -> int:
        """Slots per row."""
        return self.inner.capacity

    def write(self, start: int, entries: Tensor, position: Tensor | int | None = None) -> None:
        """Store the coordinates of entries [B, G, T, D] at slots start .. start + T."""
        self.inner.write(start, self._coordinates(entries, position))

    def scatter(self, slot: Tensor, entry: Tensor, position: Tensor | int | None = None) -> None:
        """Store one entry [B, G, 1, D] per row at its own slot [B, 1]."""
        self.inner.scatter(slot, self._coordinates(entry, position))

    def _coordinates(self, entries: Tensor, position: Tensor | int | None) -> Tensor:
        basis = self.how.basis
        wide = turned_back(entries, position, basis.rotary)
        if basis.bias is not None:
            wide = wide - basis.bias.to(wide.dtype)[:, None]
        return torch.einsum("bgtd,gdr->btr", wide, basis.directions.to(wide.dtype))[:, None].to(self.dtype)

    def settle(self, position: Tensor) -> None:
        """Do nothing: every token is written alone."""

    def entries(self, stop: int, position: Tensor) -> Latent:
        """Return what attention reads of slots 0 .. stop."""
        inner = self.inner.entries(stop, position)
        rows = Rows([inner], self.dtype) if isinstance(inner, Tensor) else inner
        assert isinstance(rows, Rows)
        return Latent(rows, self.how.basis, position[:, :, :stop])

    def read(self, stop: int, position: Tensor | None = None) -> Tensor:
        """Return a copy of slots 0 .. stop as numbers [B, G, stop, D]."""
        assert position is not None
        return self.entries(stop, position).numbers(0, stop).to(self.dtype)

    def unused_bytes(self) -> int:
        """Return 0: entries need what the closed form says."""
        return 0

    def grow(self, capacity: int, used: int) -> None:
        """Move to storage for `capacity` slots."""
        self.inner.grow(capacity, used)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held, the directions included, which caches of one model share."""
        return (*self.inner.tensors(), self.how.basis.directions)

    def snapshot(self) -> object:
        """Return what `restore` needs to take back entries appended later."""
        return self.inner.snapshot()

    def restore(self, snapshot: object) -> None:
        """Go back to a snapshot, in the same storage."""
        self.inner.restore(snapshot)


@dataclass(frozen=True)
class Latent:
    """Keys or values as coordinates; queries go to the coordinates where nothing was rotated, and outputs come back.

    Args:
        coordinates: of the entries [B, 1, m, r].
        basis: directions.
        position: of the entries [B, 1, m].
    """

    coordinates: Rows
    basis: Basis
    position: Tensor

    exact: ClassVar[int] = 0
    outlier_entries: ClassVar[float] = 0.0
    sink_entries: ClassVar[int] = 0

    @property
    def groups(self) -> int:
        """KV heads."""
        return self.basis.directions.shape[0]

    def numbers(self, start: int, stop: int) -> Tensor:
        """Return entries start .. stop as numbers [B, G, stop - start, D], float32 or wider."""
        wide = torch.promote_types(self.coordinates.dtype, torch.float32)
        coordinates = self.coordinates.numbers(start, stop, wide)[:, 0]
        out = torch.einsum("btr,gdr->bgtd", coordinates, self.basis.directions.to(wide))
        if self.basis.bias is not None:
            out += self.basis.bias.to(wide)[:, None]
        if self.basis.rotary is None:
            return out
        return turn(out, self.position[:, :, start:stop], self.basis.rotary)

    def logits(self, rows: Tensor) -> Tensor:
        """Return the products of rows [B, G, g, D] with every entry [B, G, g, m], float32 or wider."""
        basis, length = self.basis, self.position.shape[2]
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        if basis.rotary is not None:
            out = rows.new_empty((*rows.shape[:3], length))
            for start in range(0, length, BLOCK):
                stop = min(length, start + BLOCK)
                out[..., start:stop] = torch.matmul(rows, self.numbers(start, stop).transpose(-1, -2))
            return out
        mine = torch.einsum("bghd,gdr->bghr", rows, basis.directions.to(rows.dtype)).flatten(1, 2)
        logits = self.coordinates.logits(mine[:, None]).view(*rows.shape[:3], length)
        if basis.bias is not None:  # the same for every entry
            logits += torch.einsum("bghd,gd->bgh", rows, basis.bias.to(rows.dtype))[..., None]
        return logits

    def weighted(self, weights: Tensor) -> Tensor:
        """Return the sum of the entries by weights [B, G, g, m], as [B, G, g, D]; not for what is rotated."""
        basis = self.basis
        summed = self.coordinates.weighted(weights.flatten(1, 2)[:, None])
        summed = summed.view(*weights.shape[:3], -1)
        out = torch.einsum("bghr,gdr->bghd", summed, basis.directions.to(summed.dtype))
        if basis.bias is not None:
            out = out + weights.sum(dim=-1, keepdim=True).to(out.dtype) * basis.bias.to(out.dtype)[:, None]
        return out


@lru_cache(maxsize=4)
def ranks(view: ModelView, most: float, least: float) -> tuple[int, ...]:
    """Return the rank of every layer, a multiple of `ROUNDED_TO`.

    Args:
        view: of the model.
        most: share of the full rank that the layer with the largest product of condition numbers keeps.
        least: share that the one with the smallest keeps.
    """
    logs = [
        sum(_log_condition(made.weight) for made in (shape.key_projection, shape.value_projection) if made is not None)
        for shape in view.layers
    ]
    products = [sum(logs[layer:]) for layer in range(len(logs))]
    width = max(products) - min(products)
    out = []
    for shape, product in zip(view.layers, products, strict=True):
        full = shape.kv_heads * shape.key_dim
        share = most - (max(products) - product) / width * (most - least) if width > 0 else most
        out.append(min(full, max(1, round(full * share / ROUNDED_TO)) * ROUNDED_TO))
    return tuple(out)


def _log_condition(weight: Tensor) -> float:
    if weight.is_meta:
        return 0.0
    squares = torch.linalg.eigvalsh(_gram(weight)).clamp(min=0)
    return math.log(1 / max(LEAST_SINGULAR, float(squares[0] / squares[-1]) ** 0.5))


@lru_cache(maxsize=512)  # two of each layer
def _basis(made: Projection, rank: int) -> Basis:
    weight = made.weight
    if weight.is_meta:
        return Basis(weight.new_empty((*weight.shape[:2], rank)), made.bias, None)
    directions = torch.linalg.eigh(_gram(weight)).eigenvectors.flip(1)[:, :rank]
    kept = torch.empty_like(directions, dtype=torch.promote_types(weight.dtype, torch.float32)).copy_(directions)
    return Basis(kept.unflatten(0, weight.shape[:2]), made.bias, None)


def _gram(weight: Tensor) -> Tensor:
    flat = weight.flatten(0, 1).double()
    return flat @ flat.t()
