"""ThinK: heads of the keys keep the channels that the last queries of a prompt ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.cache.codecs.base import Room
from kvbench.cache.codecs.dense import Dense
from kvbench.cache.codecs.sides import LayerSides
from kvbench.kernels.packed import Rows
from kvbench.types import ModelView

INDEX = torch.int16  # of a channel


@dataclass(frozen=True, kw_only=True)
class ThinK:
    """Keys keep some of their channels, values all of theirs.

    A channel's part in the logits is the product of its length over the keys and its length over the queries. At the
    end of the prompt each KV head keeps the channels for which that is largest; the others are freed.

    Source: Xu et al. (ThinK), arXiv:2407.21018, sec. 3: channels of keys as they are cached, rotation included; 0.4 of
        them go, and the 32 latest keys stay whole.
    Deviates: all query heads of a KV head choose together, where the authors keep keys for each query head. A key that
        is no longer among the latest loses its channels, too, where the authors leave all keys after the prompt whole.

    Args:
        kept: share of a head's channels.
        window: latest tokens whose keys are whole.
        num_queries: last ones of the prompt, which choose.
    """

    is_exact: ClassVar[bool] = False
    writes_each_token_alone: ClassVar[bool] = False
    joins_heads: ClassVar[bool] = False
    joins_slots: ClassVar[bool] = False
    data_dependent: ClassVar[bool] = False
    takes_pieces: ClassVar[bool] = False
    flush_tokens: ClassVar[int] = 1

    kept: float
    window: int
    num_queries: int

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if not 0 < self.kept <= 1:
            raise ValueError(f"strategy.codec.kept must be above 0 and at most 1; got {self.kept}.")
        if self.window < 1 or self.num_queries < 1:
            raise ValueError(
                f"strategy.codec.window and strategy.codec.num_queries must be at least 1; got {self.window} and "
                f"{self.num_queries}."
            )

    def of_layer(self, view: ModelView, layer: int) -> LayerSides:
        """Return both sides of a layer."""
        return LayerSides(
            key_format=ThinFormat(rule=self),
            value_format=Dense(),
            writes_each_token_alone=self.writes_each_token_alone,
            flush_tokens=self.flush_tokens,
            num_sink=0,
            fixed_bytes=0,
        )

    def kernel_on(self, device: torch.device, dtype: torch.dtype) -> None:
        """Return None: nothing is packed."""

    def unsupported(self, view: ModelView) -> None:
        """Return None: every model can."""


@dataclass(frozen=True, kw_only=True)
class ThinFormat:
    """How keys are written.

    Args:
        rule: how many channels are kept, and where.
    """

    rule: ThinK

    @property
    def num_queries(self) -> int:
        """Last queries of a prompt that are asked for."""
        return self.rule.num_queries

    def channels(self, dim: int) -> int:
        """Return how many of so many channels are kept."""
        return max(1, round(self.rule.kept * dim))

    def thin(self, entries: int) -> int:
        """Return how many of so many entries are not whole once the cache has settled."""
        return max(0, entries - self.rule.window)

    def whole(self, capacity: int) -> int:
        """Return how many of so many entries there is room for as they are, a new one included."""
        return min(capacity, self.rule.window) + 1

    def empty(self, like: Tensor, capacity: int) -> ThinKeys:
        """Return room for `capacity` entries shaped as `like` [B, G, T, D]."""
        return ThinKeys(self, like, capacity)

    def allocated_bytes(self, heads: int, dim: int, capacity: int, dtype: torch.dtype) -> int:
        """Return the bytes of room for so many entries of so many heads, the channels' numbers included."""
        return self._bytes(heads, dim, self.thin(capacity), self.whole(capacity), dtype)

    def used_bytes(self, heads: int, dim: int, entries: int, dtype: torch.dtype) -> int:
        """Return the bytes of so many entries of so many heads, the channels' numbers included."""
        thin = self.thin(entries)
        return self._bytes(heads, dim, thin, entries - thin, dtype)

    def rooms(self, batch: int, heads: int, dim: int, capacity: int, dtype: torch.dtype) -> list[Room]:
        """Return the storage of the entries that are not whole."""
        thin = self.thin(capacity)
        return [Room(batch=batch, entries=thin, bytes=batch * heads * thin * self.channels(dim) * dtype.itemsize)]

    def _bytes(self, heads: int, dim: int, thin: int, whole: int, dtype: torch.dtype) -> int:
        channels = self.channels(dim)
        return heads * (channels * INDEX.itemsize + (thin * channels + whole * dim) * dtype.itemsize)


class ThinKeys:
    """Channels of the earlier entries, and a ring of whole ones, where slot s is row s % (its length).

    Args:
        how: entries are written.
        like: an example of entries [B, G, T, D].
        capacity: slots per row and head.
    """

    def __init__(self, how: ThinFormat, like: Tensor, capacity: int) -> None:
        batch, heads, _, dim = like.shape
        self.how = how
        self.index = like.new_zeros((batch, heads, how.channels(dim)), dtype=INDEX)
        self.filled = 0  # slots in use
        self.thin = 0  # the first of them, whose entries are not whole
        self._queries: Tensor | None = None  # until the prompt is written
        self._allocate(like, capacity)

    def _allocate(self, like: Tensor, capacity: int) -> None:
        (batch, heads, _, dim), self.capacity = like.shape, capacity
        self.whole = like.new_zeros((batch, heads, self.how.whole(capacity), dim))
        self.numbers = like.new_zeros((batch, heads, self.how.thin(capacity), self.index.shape[2]))

    def ask(self, queries: Tensor) -> None:
        """Note the last queries [B, H, T, D] of the prompt that is written next."""
        self._queries = queries[:, :, -self.how.num_queries :]

    def write(self, start: int, entries: Tensor, position: Tensor | int | None = None) -> None:
        """Store entries [B, G, T, D] at slots start .. start + T: a prompt, or one that follows."""
        self.filled, first = start + entries.shape[2], start
        if start == 0:
            self._choose(entries)
            first = self.how.thin(self.filled)
            self._cut(entries[:, :, :first])
        row = torch.arange(first, self.filled, device=entries.device) % self.whole.shape[2]
        self.whole.index_copy_(2, row, entries[:, :, first - start :])

    def _choose(self, keys: Tensor) -> None:
        """Choose each head's channels by a prompt's keys [B, G, T, D] and its last queries."""
        assert self._queries is not None, "keys were not told which queries ask for them"
        wide = torch.promote_types(keys.dtype, torch.float32)
        asking = self._queries.unflatten(1, (keys.shape[1], -1))
        asked = torch.linalg.vector_norm(asking, dim=(2, 3), dtype=wide)
        score = asked * torch.linalg.vector_norm(keys, dim=2, dtype=wide)
        self.index.copy_(score.topk(self.index.shape[2], dim=-1).indices.sort(dim=-1).values)
        self._queries = None

    def _cut(self, entries: Tensor) -> None:
        """Keep the channels of the oldest whole entries [B, G, T, D]."""
        at = self.index.long()[:, :, None].expand(-1, -1, entries.shape[2], -1)
        self.numbers.narrow(2, self.thin, entries.shape[2]).copy_(entries.gather(3, at))
        self.thin += entries.shape[2]

    def settle(self, position: Tensor) -> None:
        """Cut the oldest whole entry, if it is no longer among the latest."""
        if self.filled - self.thin > self.how.rule.window:
            self._cut(self.whole.narrow(2, self.thin % self.whole.shape[2], 1))

    def scatter(self, slot: Tensor, entry: Tensor, position: Tensor | int | None = None) -> None:
        """Never called: entries cannot be written alone."""
        raise AssertionError

    def entries(self, stop: int, position: Tensor | None = None) -> Thinned:
        """Return what attention reads of slots 0 .. stop."""
        rows, count = self.whole.shape[2], stop - self.thin
        first = self.thin % rows
        runs = [self.whole.narrow(2, first, min(count, rows - first))]
        if count > rows - first:
            runs.append(self.whole.narrow(2, 0, count - (rows - first)))
        return Thinned(self.numbers.narrow(2, 0, self.thin), self.index.long(), Rows(runs, self.whole.dtype))

    def read(self, stop: int, position: Tensor | None = None) -> Tensor:
        """Return a copy of slots 0 .. stop as numbers [B, G, stop, D], 0 in channels that are gone."""
        held = self.entries(stop)
        size = (*self.whole.shape[:2], self.thin, self.whole.shape[3])
        at = held.index[:, :, None].expand_as(held.numbers)
        thin = self.whole.new_zeros(size).scatter_(3, at, held.numbers)
        return torch.cat([thin, held.whole.numbers(0, stop - self.thin, thin.dtype)], dim=2)

    def appended(self, stop: int) -> list[tuple[Tensor, int]]:
        """Return the storage of the entries that are not whole, and how many there are."""
        return [(self.numbers, self.thin)]

    def moved(self) -> None:
        """Do nothing: the storage is read where it is."""

    def unused_bytes(self) -> int:
        """Return 0: entries need what the closed form says."""
        return 0

    def grow(self, capacity: int, used: int) -> None:
        """Move to storage for `capacity` slots; the old storage is freed."""
        numbers, whole = self.numbers, self.whole
        self._allocate(whole, capacity)
        self.numbers.narrow(2, 0, self.thin).copy_(numbers.narrow(2, 0, self.thin))
        self.whole.narrow(2, 0, whole.shape[2]).copy_(whole)  # a ring that was shorter has not gone round yet

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held."""
        return (self.numbers, self.index, self.whole)

    def snapshot(self) -> tuple[int, int, Tensor]:
        """Return what `restore` needs to take back entries appended later."""
        return self.filled, self.thin, self.whole.clone()

    def restore(self, snapshot: object) -> None:
        """Go back to a snapshot, in the same storage."""
        whole: Tensor
        self.filled, self.thin, whole = snapshot  # type: ignore[misc]
        self.whole.narrow(2, 0, whole.shape[2]).copy_(whole)


@dataclass(frozen=True)
class Thinned:
    """Keys as attention reads them: what a query asks of channels that are gone is lost.

    Args:
        numbers: channels of the first entries [B, G, t, k].
        index: which channels these are [B, G, k].
        whole: the other entries.
    """

    numbers: Tensor
    index: Tensor
    whole: Rows

    outlier_entries: ClassVar[float] = 0.0
    sink_entries: ClassVar[int] = 0

    @property
    def groups(self) -> int:
        """KV heads."""
        return self.numbers.shape[1]

    @property
    def exact(self) -> int:
        """Entries that are as the model made them."""
        return self.whole.exact

    def logits(self, rows: Tensor) -> Tensor:
        """Return the products of rows [B, G, g, D] with every entry [B, G, g, m], float32 or wider."""
        whole, numbers = self.whole.logits(rows), self.numbers
        asked = rows.gather(3, self.index[:, :, None].expand(-1, -1, rows.shape[2], -1)).to(numbers.dtype)
        return torch.cat([torch.matmul(asked, numbers.transpose(-1, -2)).to(whole.dtype), whole], dim=3)

    def weighted(self, weights: Tensor) -> Tensor:
        """Never called: keys are not summed."""
        raise AssertionError
