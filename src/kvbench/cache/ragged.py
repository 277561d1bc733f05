"""A layer whose heads keep different numbers of entries: those of all heads lie one behind the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor

from kvbench.cache.codecs.alone import kernel_of, packing_of
from kvbench.cache.codecs.base import Format, as_bytes
from kvbench.cache.codecs.kernel import chosen_kernel
from kvbench.cache.plan import LayerPlan, grown
from kvbench.cache.store import Store
from kvbench.kernels.attend import EMPTY, Tile, attend_one
from kvbench.kernels.packed import First, Packed, Rows, Spans


class RaggedPayload:
    """Keys or values of all heads, one entry behind the other.

    Args:
        how: how entries are written.
        like: an example [B, G, T, D].
        spans: where those of each head lie.
        room: entries there is room for, over all heads.
    """

    def __init__(self, how: Format, like: Tensor, spans: Spans, room: int) -> None:
        self.packing, self.dtype, self.dim = packing_of(how, like.dtype), like.dtype, like.shape[3]
        self._kernel = kernel_of(how, like) or chosen_kernel("auto", like.device, like.dtype)
        self._allocate(like, spans, room)

    def _allocate(self, like: Tensor, spans: Spans, room: int) -> None:
        kept = self.packing.kept(self.dim)
        self.kept = [like.new_zeros((1, *one.rows(1, room)), dtype=one.dtype) for one in kept]
        run = self.packing.run(self.kept, self.dim, self._kernel)
        assert isinstance(run, Packed)
        self._written, self._read = run, replace(run, spans=spans)

    def write(self, at: Tensor, entries: Tensor) -> None:
        """Store entries [N, D], each at a place of its own [N]."""
        self.packing.write(self.kept, self._written, at[None, None], entries[None, None])

    def entries(self, stop: int, position: Tensor | None = None) -> Rows:
        """Return what attention reads."""
        return Rows([First(self._read, stop)], self.dtype)

    def read(self, stop: int, position: Tensor | None = None) -> Tensor:
        """Return a copy of the first so many entries of each head [B, G, stop, D]; 0 past its last one."""
        return self._read.dense(0, stop, torch.promote_types(self.dtype, torch.float32)).to(self.dtype)

    def unused_bytes(self) -> int:
        """Return 0: entries need what the closed form says."""
        return 0

    def move(self, spans: Spans, room: int, source: Tensor, target: Tensor) -> None:
        """Have room for so many entries; those at source [N] lie at target [N] then."""
        before = self.kept
        self._allocate(before[0], spans, room)
        for now, rows in zip(map(as_bytes, self.kept), map(as_bytes, before), strict=True):
            now[0, 0].index_copy_(0, target, rows[0, 0].index_select(0, source))

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held."""
        return (*self.kept, *self.packing.tensors())


class RaggedSlots:
    """Entries of all heads, one behind the other, and what says whose they are.

    Args:
        plan: how they are written.
        key: an example [B, G, T, D].
        value: an example [B, G, T, D_v].
        kept: entries of each head to begin with, row by row.
        after: position of what follows them.
        more: entries each head has room for beside them.
    """

    table = halves = score = log_weight = None

    def __init__(
        self, plan: LayerPlan, key: Tensor, value: Tensor, kept: Sequence[int], after: Sequence[int], more: int
    ) -> None:
        self.dtype, self._size = key.dtype, key.shape[:2]
        room = self._lay(key.device, kept, after, more)
        self.keys, self.values = (
            RaggedPayload(how, like, self.spans, room) for how, like in zip(plan.formats, (key, value), strict=True)
        )
        self._at = key.new_full((room,), EMPTY, dtype=torch.int32)  # positions

    def _lay(self, device: torch.device, kept: Sequence[int], after: Sequence[int], more: int) -> int:
        """Say where entries lie, and return how many there is room for."""
        *starts, room = accumulate((count + more for count in kept), initial=0)
        start, count, follows = (torch.tensor(each, device=device).view(self._size) for each in (starts, kept, after))
        self.spans = Spans(start=start, stop=start + count, most=max(kept) + more)
        self._ahead = follows - self.spans.stop  # how far positions are ahead of places
        return room

    @property
    def capacity(self) -> int:
        """Entries of all heads there is room for."""
        return len(self._at)

    @property
    def filled(self) -> int:
        """Entries the head that has most has room for."""
        return self.spans.most

    @property
    def position(self) -> Tensor:
        """Positions of each head's entries [B, G, filled], -1 past its last one."""
        row, is_there = self.spans.rows(0, self.filled)
        return self._at[row].masked_fill(~is_there, EMPTY)

    def put(self, at: Tensor, keys: Tensor, values: Tensor, position: Tensor) -> None:
        """Store keys [N, D] and values [N, D_v] of positions [N], each at a place of its own [N]."""
        self.keys.write(at, keys)
        self.values.write(at, values)
        self._at.index_copy_(0, at, position.int())

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Store keys [B, G, T, D] and values [B, G, T, D_v] behind those of their heads."""
        stop, tokens = self.spans.stop, keys.shape[2]
        at = (stop[..., None] + torch.arange(tokens, device=stop.device)).flatten() if tokens > 1 else stop.flatten()
        ahead = self._ahead[..., None].expand(-1, -1, tokens).flatten() if tokens > 1 else self._ahead.flatten()
        self.put(at, keys.flatten(0, 2), values.flatten(0, 2), at + ahead)
        stop.add_(tokens)

    def tiles(self) -> list[Tile]:
        """Return what attention reads."""
        return [Tile(self.keys.entries(self.filled), self.values.entries(self.filled))]

    def grow(self, tokens: int) -> int:
        """Have room for at least so many more entries of each head, and return for how many."""
        before, spans = self._at, self.spans
        starts, stops, after = (each.flatten().tolist() for each in (spans.start, spans.stop, spans.stop + self._ahead))
        kept = [stop - start for start, stop in zip(starts, stops, strict=True)]
        mean: int = sum(kept) // len(kept)
        more = max(tokens, grown(mean) - mean)
        room = self._lay(before.device, kept, after, more)
        source, target = (_places(of, kept, before.device) for of in (starts, self.spans.start.flatten().tolist()))
        self.keys.move(self.spans, room, source, target)
        self.values.move(self.spans, room, source, target)
        self._at = before.new_full((room,), EMPTY).index_copy_(0, target, before[source])
        return more

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held."""
        return (*self.keys.tensors(), *self.values.tensors(), self._at, self.spans.start, self.spans.stop, self._ahead)


def _places(starts: Sequence[int], counts: Sequence[int], device: torch.device) -> Tensor:
    """Return so many neighbouring places from each start on [sum of counts]."""
    each = [torch.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]
    return torch.cat(each).to(device)


class RaggedStore(Store):
    """Holds the entries of all rows and heads of a layer from which nothing leaves once the prompt is read."""

    slots: RaggedSlots  # type: ignore[assignment]

    def _room(self, key: Tensor, value: Tensor) -> RaggedSlots:  # type: ignore[override]
        self._more = self.plan.more(self.run)
        after = [length for length in self.run.prompt_lengths for _ in range(key.shape[1])]
        return RaggedSlots(self.plan, key, value, self.plan.kept(self.run), after, self._more)

    def fill(
        self,
        keys: Tensor,
        values: Tensor,
        position: Tensor,
        score: Tensor | None,
        queries: Tensor,
        memory: Tensor | None = None,
    ) -> None:
        """Take over a prompt, and keep as much of each head as the plan says; arguments as of `Store.fill`."""
        self.seen = self.run.prompt_tokens
        assert score is not None
        heads, columns = keys.shape[1:3]
        score, position = (each.expand(-1, heads, -1).reshape(-1, 1, columns) for each in (score, position))
        lengths = [length for length in self.run.prompt_lengths for _ in range(heads)]
        index, _ = self.plan.selector.keep(score, position, self.plan.kept(self.run), lengths)
        head, _, place = (index >= 0).nonzero(as_tuple=True)
        column = index[head, 0, place]
        at = self.slots.spans.start.flatten()[head] + place
        self.slots.put(at, _rows(keys, head, column), _rows(values, head, column), position[head, 0, column])

    def decode(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Store one new entry per row and head, and attend; arguments as of `Store.decode`."""
        self._make_room(1)
        self.slots.append(key, value)
        self.seen += 1
        return attend_one(query, self.slots.tiles(), scale, with_weights=False)[0]

    def append(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Store several tokens at once on top of what is held, and attend."""
        at = self._positions(query.shape[2], query.device)
        self._make_room(query.shape[2])
        self.slots.append(key, value)
        self.seen += query.shape[2]
        return self._attend(query, at, scale)

    def skip(self) -> None:
        """Count a token whose step was replayed: where its entries went is known to the device alone."""
        self._make_room(1)
        self.seen += 1

    def _make_room(self, tokens: int) -> None:
        decoded = self.seen - self.run.prompt_tokens
        if decoded + tokens <= self._more:
            return
        if self.run.new_tokens is not None:
            self._refuse_more(tokens)
        self._more = decoded + self.slots.grow(tokens)

    def _in_slots(self) -> Tensor:
        return self.slots.position

    def used_bytes(self) -> int:
        """Return the bytes of the occupied slots, metadata included; syncs with the device."""
        spans = self.slots.spans
        return self.plan.ragged_bytes(self.run, self.slots.dtype, int((spans.stop - spans.start).sum()))

    def snapshot(self) -> Mapping[str, object]:
        """Return what `restore` needs to go back to this point."""
        return {"seen": self.seen, "held": self.slots.spans.stop - self.slots.spans.start}

    def restore(self, snapshot: Mapping[str, object]) -> None:
        """Go back to a snapshot, in the same storage."""
        self.seen = snapshot["seen"]  # type: ignore[assignment]
        torch.add(self.slots.spans.start, snapshot["held"], out=self.slots.spans.stop)  # type: ignore[call-overload]


def _rows(entries: Tensor, head: Tensor, column: Tensor) -> Tensor:
    """Return entries [B, G, n, D] of heads [N], counted over all rows, at columns [N], as [N, D]."""
    heads, columns = entries.shape[1:3]
    by_token = entries.transpose(1, 2)
    if by_token.is_contiguous():  # as models lay them out
        return by_token.flatten(0, 2).index_select(0, (head // heads * columns + column) * heads + head % heads)
    return entries[head // heads, head % heads, column]
