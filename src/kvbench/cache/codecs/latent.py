"""Entries kept as coordinates, and attention to them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.cache.codecs.base import Appended, Format, Movable, Room
from kvbench.cache.codecs.basis import Basis
from kvbench.cache.codecs.ends import EndsFormat
from kvbench.cache.rotary import turn, turned_back
from kvbench.kernels.packed import Rows

BLOCK = 32  # keys that are restored at once where they have to be rotated


@dataclass(frozen=True, kw_only=True)
class LatentCodec:
    """Both sides of a layer.

    Args:
        keys: how keys are written.
        values: how values are written, which may be as they are.
        num_sink: first entries that are exact.
        window: latest entries that are exact.
    """

    is_exact: ClassVar[bool] = False
    flush_tokens: ClassVar[int] = 1

    keys: LatentFormat
    values: Format
    num_sink: int
    window: int

    @property
    def writes_each_token_alone(self) -> bool:
        """Whether an entry can be written, and overwritten, without any other."""
        return self.num_sink == self.window == 0

    @property
    def key_format(self) -> Format:
        """How keys are written, exact ones included."""
        return self._with_ends(self.keys)

    @property
    def value_format(self) -> Format:
        """How values are written, exact ones included."""
        return self._with_ends(self.values)

    def _with_ends(self, inner: Format) -> Format:
        if self.writes_each_token_alone:
            return inner
        return EndsFormat(inner=inner, num_sink=self.num_sink, window=self.window)

    @property
    def fixed_bytes(self) -> int:
        """Bytes of the directions and scales; keys and values may share them."""
        sides = [side for side in (self.keys, self.values) if isinstance(side, LatentFormat)]
        return sum({id(t): t.nbytes for side in sides for t in side.basis.tensors()}.values())

    def of_heads(self, heads: slice) -> LatentCodec:
        """Return how the entries of some of the heads are written."""
        values = self.values.of_heads(heads) if isinstance(self.values, LatentFormat) else self.values
        return replace(self, keys=self.keys.of_heads(heads), values=values)


@dataclass(frozen=True)
class LatentFormat:
    """One side of a layer.

    Args:
        basis: coordinates.
        inner: how they are written.
    """

    basis: Basis
    inner: Format

    def of_heads(self, heads: slice) -> LatentFormat:
        """Return how the entries of some of the heads are written."""
        return replace(self, basis=self.basis.of_heads(heads))

    def empty(self, like: Tensor, capacity: int) -> LatentPayload:
        """Return room for `capacity` entries shaped as `like` [B, G, T, D]."""
        return LatentPayload(self, like, capacity)

    def allocated_bytes(self, heads: int, dim: int, capacity: int, dtype: torch.dtype) -> int:
        """Return the bytes of room for so many entries of all heads, metadata included."""
        return self.inner.allocated_bytes(heads // self.basis.joined, self.basis.rank, capacity, dtype)

    def used_bytes(self, heads: int, dim: int, entries: int, dtype: torch.dtype) -> int:
        """Return the bytes of so many entries of all heads, metadata included."""
        return self.inner.used_bytes(heads // self.basis.joined, self.basis.rank, entries, dtype)

    def rooms(self, batch: int, heads: int, dim: int, capacity: int, dtype: torch.dtype) -> list[Room]:
        """Return the storages of the coordinates."""
        assert isinstance(self.inner, Movable)
        return self.inner.rooms(batch, heads // self.basis.joined, self.basis.rank, capacity, dtype)


class LatentPayload:
    """Coordinates of entries; keys whose rotation is not part of them lose it when they are written.

    Args:
        how: entries are written.
        like: an example of entries [B, G, T, D].
        capacity: slots per row.
    """

    def __init__(self, how: LatentFormat, like: Tensor, capacity: int) -> None:
        self.how, self.dtype = how, like.dtype
        size = (like.shape[0], like.shape[1] // how.basis.joined, 0, how.basis.rank)
        self.inner = how.inner.empty(like.new_empty(size), capacity)

    @property
    def capacity(self) -> int:
        """Slots per row."""
        return self.inner.capacity

    def write(self, start: int, entries: Tensor, position: Tensor | int | None = None) -> None:
        """Store the coordinates of entries [B, G, T, D] at slots start .. start + T."""
        self.inner.write(start, self._coordinates(entries, position))

    def scatter(self, slot: Tensor, entry: Tensor, position: Tensor | int | None = None) -> None:
        """Store one entry [B, G, 1, D] per row at its own slot [B, 1 or G], or k of them at [B, 1 or G, k]."""
        self.inner.scatter(slot, self._coordinates(entry, position))

    def _coordinates(self, entries: Tensor, position: Tensor | int | None) -> Tensor:
        basis = self.how.basis
        return basis.coordinates(turned_back(entries, position, basis.rotary)).to(self.dtype)

    def settle(self, position: Tensor) -> None:
        """Do nothing: every token is written alone."""

    def entries(self, stop: int, position: Tensor) -> Rows:
        """Return what attention reads of slots 0 .. stop."""
        inner = self.inner.entries(stop, position)
        rows = Rows([inner], self.dtype) if isinstance(inner, Tensor) else inner
        assert isinstance(rows, Rows)
        return Rows([Latent(rows, self.how.basis, position[:, :, :stop])], self.dtype)

    def read(self, stop: int, position: Tensor | None = None) -> Tensor:
        """Return a copy of slots 0 .. stop as numbers [B, G, stop, D]."""
        assert position is not None
        wide = torch.promote_types(self.dtype, torch.float32)
        return self.entries(stop, position).numbers(0, stop, wide).to(self.dtype)

    def appended(self, stop: int) -> list[tuple[Tensor, int]]:
        """Return the storages of the coordinates, and how many rows of each are in use."""
        assert isinstance(self.inner, Appended)
        return self.inner.appended(stop)

    def moved(self) -> None:
        """Tell what entries are written as."""
        assert isinstance(self.inner, Appended)
        self.inner.moved()

    def unused_bytes(self) -> int:
        """Return 0: entries need what the closed form says."""
        return 0

    def grow(self, capacity: int, used: int) -> None:
        """Move to storage for `capacity` slots."""
        self.inner.grow(capacity, used)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held, the directions and scales included, which caches of one model share."""
        return (*self.inner.tensors(), *self.how.basis.tensors())

    def snapshot(self) -> object:
        """Return what `restore` needs to take back entries appended later."""
        return self.inner.snapshot()

    def restore(self, snapshot: object) -> None:
        """Go back to a snapshot, in the same storage."""
        self.inner.restore(snapshot)


@dataclass(frozen=True)
class Latent:
    """Keys or values as coordinates; queries go to the coordinates unless keys must be rotated, and outputs come back.

    Args:
        coordinates: of the entries [B, n, m, r].
        basis: of the coordinates.
        position: of the entries [B, 1 or G, m].
    """

    coordinates: Rows
    basis: Basis
    position: Tensor

    outlier_rows: ClassVar[float] = 0.0

    @property
    def length(self) -> int:
        """Entries of each head."""
        return self.position.shape[2]

    @property
    def groups(self) -> int:
        """KV heads."""
        return self.coordinates.groups * self.basis.joined

    def dense(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Return entries start .. stop as numbers [B, G, stop - start, D]."""
        wide = torch.promote_types(self.coordinates.dtype, torch.float32)
        out = self.basis.entries(self.coordinates.numbers(start, stop, wide))
        if self.basis.rotary is not None:
            out = turn(out, self.position[:, :, start:stop], self.basis.rotary)
        return out.to(dtype)

    def logits(self, rows: Tensor, out: Tensor) -> None:
        """Write the products of rows [B, G, g, D], float32 or wider, into out [B, G, g, m]."""
        basis = self.basis
        if basis.rotary is not None:
            for start in range(0, self.length, BLOCK):
                stop = min(self.length, start + BLOCK)
                numbers = self.dense(start, stop, rows.dtype)
                out[..., start:stop] = torch.matmul(rows, numbers.transpose(-1, -2))
            return
        out.copy_(self.coordinates.logits(basis.queries(rows)).view(out.shape))
        if basis.bias is not None:  # the same for every entry
            out += torch.einsum("bghd,gd->bgh", rows, basis.bias.to(rows.dtype))[..., None]

    def weighted(self, weights: Tensor) -> Tensor:
        """Return the sum of the entries by weights [B, G, g, m], as [B, G, g, D]; not for what is rotated."""
        basis = self.basis
        out = basis.sums(self.coordinates.weighted(weights.unflatten(1, (-1, basis.joined)).flatten(2, 3)))
        if basis.bias is not None:
            out = out + weights.sum(dim=-1, keepdim=True).to(out.dtype) * basis.bias.to(out.dtype)[:, None]
        return out
