"""Storage as slots: an entry's slot has no meaning, its position is a row beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvbench.cache.codecs.base import Format, LayerCodec, Payload
from kvbench.cache.codecs.same import Same
from kvbench.cache.page_table import PageTable
from kvbench.cache.paged import PagedPayload
from kvbench.kernels.attend import EMPTY, Entries, Tile
from kvbench.kernels.packed import Kernel, Rows

if TYPE_CHECKING:
    from kvbench.cache.placement.apart import Halves

NOTHING: Mapping[str, Tensor] = {}


class Slots:
    """Keys, values and the rows beside them.

    Args:
        codec: how entries are written.
        key: an example [B, G, T, D].
        value: an example [B, G, T, D_v].
        capacity: slots per row and head.
        heads: kept sets per row, 1 or G.
        beside: what is kept beside each entry and kept set: its dtype, and its width where it is more than a number.
        state: what is kept once per row and KV head: its dtype and its width.
        values_are_keys: whether a value is its key.
        paged: where slots lie in pages, their table, and what reads entries that are kept as the model made them.
    """

    def __init__(
        self,
        codec: LayerCodec,
        key: Tensor,
        value: Tensor,
        capacity: int,
        *,
        heads: int,
        beside: Mapping[str, tuple[torch.dtype, int]],
        state: tuple[torch.dtype, int] | None = None,
        values_are_keys: bool = False,
        paged: tuple[PageTable, Kernel] | None = None,
    ) -> None:
        batch = key.shape[0]

        def room(how: Format, like: Tensor) -> Payload:
            return how.empty(like, capacity) if paged is None else PagedPayload(how, like, *paged)

        self.keys: Payload = room(codec.key_format, key)
        self.values: Payload = Same(self.keys) if values_are_keys else room(codec.value_format, value)
        self.table = None if paged is None else paged[0]
        self.halves: Halves | None = None  # where some entries are attended to elsewhere
        self.dtype = key.dtype
        self.position = key.new_full((batch, heads, capacity), -1, dtype=torch.int32)
        self.beside = {
            name: key.new_zeros((batch, heads, capacity, *([width] if width > 1 else [])), dtype=dtype)
            for name, (dtype, width) in beside.items()
        }
        self.state: Tensor | None = None  # [B, G, width]
        if state is not None:
            self.state = key.new_zeros((*key.shape[:2], state[1]), dtype=state[0])
        self.filled = 0  # slots in use by at least one row
        self.has_holes = False  # whether some of them are empty in some row

    @property
    def capacity(self) -> int:
        """Slots per row and head."""
        return self.keys.capacity

    @property
    def score(self) -> Tensor | None:
        """Scores [B, heads, capacity], where they are kept."""
        return self.beside.get("score")

    @property
    def log_weight(self) -> Tensor | None:
        """Log of how many tokens each entry stands for [B, heads, capacity], where that is kept."""
        return self.beside.get("log_weight")

    def append(
        self, key: Tensor, value: Tensor, position: Tensor | int, beside: Mapping[str, Tensor] = NOTHING
    ) -> None:
        """Store entries [B, G, T, D] in the next slots, the same ones for every row.

        Args:
            key: [B, G, T, D].
            value: [B, G, T, D_v].
            position: [B, 1 or heads, T], or the one position of a single entry.
            beside: rows [B, 1 or heads, T] of what is kept beside; 0 where nothing is given.
        """
        self.put(self.filled, key, value, position, beside)
        self.filled += key.shape[2]

    def put(
        self, slot: int, key: Tensor, value: Tensor, position: Tensor | int, beside: Mapping[str, Tensor] = NOTHING
    ) -> None:
        """Store entries at slot, slot + 1 ... of every row; arguments as of `append`."""
        count = key.shape[2]
        self.keys.write(slot, key, position)
        self.values.write(slot, value, position)
        if isinstance(position, int):
            self.position.select(2, slot).fill_(position)
        else:
            self.position.narrow(2, slot, count).copy_(position)
        for name, row in self.beside.items():
            if name in beside:
                row.narrow(2, slot, count).copy_(beside[name])
            else:
                row.narrow(2, slot, count).zero_()

    def scatter(
        self, slot: Tensor, key: Tensor, value: Tensor, position: Tensor | int, beside: Mapping[str, Tensor] = NOTHING
    ) -> None:
        """Store one entry per row and kept set at its own slot [B, heads]; other arguments as of `append`."""
        self.keys.scatter(slot, key, position)
        self.values.scatter(slot, value, position)
        at = slot[:, :, None]
        if isinstance(position, int):
            self.position.scatter_(2, at, position)
        else:
            self.position.scatter_(2, at, position.expand(at.shape))
        for name, row in self.beside.items():
            if name in beside:
                row.scatter_(2, at, beside[name].expand(at.shape))
            elif row.dim() == 3:
                row.scatter_(2, at, 0)
            else:
                row.scatter_(2, at[..., None].expand(-1, -1, -1, row.shape[3]), 0)

    def grow(self, capacity: int) -> None:
        """Move to a larger storage, keys first, so that only one of the two is ever held twice."""
        self.keys.grow(capacity, self.filled)
        self.values.grow(capacity, self.filled)
        self.position = _wider(self.position, capacity, self.filled, -1)
        for name, row in self.beside.items():
            self.beside[name] = _wider(row, capacity, self.filled, 0)

    def tiles(self) -> list[Tile]:
        """Return what attention reads."""
        visible = (self.position.narrow(2, 0, self.filled) != EMPTY) if self.has_holes else None
        weight = None if self.log_weight is None else self.log_weight.narrow(2, 0, self.filled)
        keys, values = (payload.entries(self.filled, self.position) for payload in (self.keys, self.values))
        return [Tile(keys, values, log_weight=weight, visible=visible)]

    def runs(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield keys [B, G, m, D], values [B, G, m, D_v] and positions [B, 1 or heads, m], so many at a time."""
        held = [payload.entries(self.filled, self.position) for payload in (self.keys, self.values)]
        for start in range(0, self.filled, size):
            stop = min(self.filled, start + size)
            keys, values = (self._numbers(entries, start, stop) for entries in held)
            yield keys, values, self.position[:, :, start:stop]

    def _numbers(self, entries: Tensor | Entries, start: int, stop: int) -> Tensor:
        """Return some of the entries as numbers of the model's dtype."""
        if isinstance(entries, Tensor):
            return entries[:, :, start:stop]
        assert isinstance(entries, Rows), "refused before"
        return entries.numbers(start, stop, torch.promote_types(self.dtype, torch.float32)).to(self.dtype)

    def settle(self) -> None:
        """Pack what has to be packed before the next entry comes."""
        self.keys.settle(self.position)
        self.values.settle(self.position)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held."""
        state = () if self.state is None else (self.state,)
        return (*self.keys.tensors(), *self.values.tensors(), self.position, *self.beside.values(), *state)


def _wider(row: Tensor, capacity: int, used: int, fill: int) -> Tensor:
    wider = row.new_full((*row.shape[:2], capacity, *row.shape[3:]), fill)
    wider.narrow(2, 0, used).copy_(row.narrow(2, 0, used))
    return wider
