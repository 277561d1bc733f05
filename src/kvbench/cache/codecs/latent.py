"""Entries kept as coordinates, and attention to them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.cache.codecs.base import Appended, Format, Movable, Room
from kvbench.cache.codecs.basis import Basis
from kvbench.cache.codecs.ends import EndsFormat
from kvbench.cache.rotary import turn, turned_back, turns
from kvbench.kernels.packed import Rows

LEAST = 32  # keys that are rotated at once, at least
ROOM = 0.09  # of the bytes of a layer's keys and values in float16, for what a step makes to rotate keys


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
            for query, logits in zip(rows.unbind(dim=2), out.unbind(dim=2), strict=True):
                self._logits_of_rotated(query, logits, basis.rotary, rows.shape[2])
            return
        out.copy_(self.coordinates.logits(basis.queries(rows)).view(out.shape))
        if basis.bias is not None:  # the same for every entry
            out += torch.einsum("bghd,gd->bgh", rows, basis.bias.to(rows.dtype))[..., None]

    def _logits_of_rotated(self, query: Tensor, out: Tensor, rotary: Tensor, share: int) -> None:
        """Write the products of a query of each KV head [B, G, D] with keys that are rotated only now into [B, G, m].

        The query goes to the coordinates once, as a row for each channel, and the products with some keys at a time are
        weighed by the cosines and sines of these keys' positions: no key is restored.

        Args:
            query: float32 or wider.
            out: written to.
            rotary: inverse frequencies.
            share: queries of a KV head.
        """
        basis = self.basis
        halves = _halves(query, len(rotary))
        mixed = basis.queries(halves).mT  # [B, n, r, h x W]
        beside = None if basis.bias is None else (halves @ basis.bias.to(halves.dtype)[..., None]).squeeze(3)
        channels = halves.shape[2]
        del halves
        block = self._at_once(channels, query.shape[-1], share)
        for start in range(0, self.length, block):
            here = slice(start, min(self.length, start + block))
            products = self.coordinates.numbers(here.start, here.stop, query.dtype) @ mixed
            products = products.unflatten(3, (basis.joined, channels)).transpose(2, 3)  # [B, n, h, k, W]
            if beside is not None:
                products += beside.unflatten(1, (-1, basis.joined))[:, :, :, None]
            table = _turns(self.position[:, :, here], rotary, products)
            products *= table.unflatten(1, (-1, basis.joined if table.shape[1] > 1 else 1))
            out[..., here] = products.sum(dim=-1).flatten(1, 2)

    def _at_once(self, channels: int, width: int, share: int) -> int:
        """Return how many keys are rotated at once: as many as leave what is made of them below `ROOM`.

        Args:
            channels: products of a query with each key.
            width: D.
            share: queries of a KV head, whose logits need room as well.
        """
        rank, wide = self.basis.rank, torch.float32.itemsize
        room = ROOM * self.length * 2 * width * torch.float16.itemsize
        rest = room - wide * (share * self.length + channels * rank)
        return max(LEAST, int(rest / (wide * (channels + rank / self.basis.joined))))

    def weighted(self, weights: Tensor) -> Tensor:
        """Return the sum of the entries by weights [B, G, g, m], as [B, G, g, D]; not for what is rotated."""
        basis = self.basis
        out = basis.sums(self.coordinates.weighted(weights.unflatten(1, (-1, basis.joined)).flatten(2, 3)))
        if basis.bias is not None:
            out = out + weights.sum(dim=-1, keepdim=True).to(out.dtype) * basis.bias.to(out.dtype)[:, None]
        return out


def _halves(rows: Tensor, half: int) -> Tensor:
    """Return a query of each KV head [B, G, D] as rows [B, G, W, D] for cosines, for sines and for what is not rotated.

    The product of a query with a rotated key is the sum over pairs of channels of the cosine times what the first row
    of a pair makes of the key before rotation, and of the sine times what the second makes of it; the last row of all,
    where there is one, is for channels that stay.
    """
    first, second, rest = rows.split((half, half, rows.shape[-1] - 2 * half), dim=-1)
    out = rows.new_zeros((*rows.shape[:-1], 2 * half + bool(rest.shape[-1]), rows.shape[-1]))
    for at, (one, other) in enumerate(((first, second), (second, -first))):
        block = out[..., at * half : (at + 1) * half, :]
        block[..., :half].diagonal(dim1=-2, dim2=-1).copy_(one)
        block[..., half : 2 * half].diagonal(dim1=-2, dim2=-1).copy_(other)
    if rest.shape[-1] > 0:
        out[..., -1, 2 * half :] = rest
    return out


def _turns(position: Tensor, rotary: Tensor, like: Tensor) -> Tensor:
    """Return cosines, sines and ones for positions [B, 1 or G, k], as many as rows of a query [B, 1 or G, k, W]."""
    angles = turns(position[..., None], rotary, like.dtype)
    stay = angles[0].new_ones(()).expand((*position.shape, like.shape[-1] - 2 * len(rotary)))
    return torch.cat((*angles, stay), dim=-1)
