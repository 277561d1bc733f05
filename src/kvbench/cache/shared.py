"""A cache of many sequences, in pages of one pool that they may share; a pass reads tokens of some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from kvbench.cache.codecs.kernel import chosen_kernel
from kvbench.cache.doors import Door, Handle, storage_bytes
from kvbench.cache.paged import PagedRoom
from kvbench.cache.plan import LayerPlan
from kvbench.kernels.attend import EMPTY, Tile, attend_causal, attend_one, attend_prompt
from kvbench.kernels.packed import First, Rows
from kvbench.types import DECODE, ModelView, Step


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Tokens of one sequence that a pass reads.

    Args:
        pages: that the sequence's slots lie in, those of the new tokens included.
        start: tokens of the sequence whose entries are there.
        tokens: that are new.
    """

    pages: Sequence[int]
    start: int
    tokens: int

    @property
    def stop(self) -> int:
        """Tokens of the sequence once they are read."""
        return self.start + self.tokens


@dataclass(frozen=True, kw_only=True)
class Copy:
    """First slots of a page that are copied to another, once the new tokens of a pass are stored.

    Args:
        source: page that is not this sequence's alone.
        target: page that is.
        slots: how many.
    """

    source: int
    target: int
    slots: int


@dataclass(frozen=True, kw_only=True)
class _Long:
    """Several tokens of a sequence, as layers are told of them.

    Args:
        at: their columns in the pass.
        pages: of the sequence [n].
        position: of all its entries [1, 1, stop].
    """

    at: slice
    pages: Tensor
    position: Tensor


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """What a pass reads, as layers are told of it.

    Args:
        page: of each new token [1, T].
        slot: in that page [1, T].
        position: of each new token [1, T].
        begun: pages of which this pass fills the first slots alone [n].
        copies: pages to copy, in this order.
        single: columns of the sequences with one new token [R].
        index: their pages [R, n], EMPTY behind the last one.
        visible: their entries [R, 1, m].
        long: the others.
    """

    page: Tensor
    slot: Tensor
    position: Tensor
    begun: Tensor
    copies: Sequence[Copy]
    single: Tensor
    index: Tensor
    visible: Tensor
    long: Sequence[_Long]


class SharedLayer:
    """Keys and values of one layer, in pages that belong to whoever is given them.

    Args:
        plan: what to do; every entry stays, and is written alone.
        pages: how many there are.
        view: of the model.
        donor: layer whose entries this one reads, having none of its own.
    """

    padding: Tensor | None = None

    def __init__(self, plan: LayerPlan, pages: int, view: ModelView, donor: SharedLayer | None) -> None:
        assert plan.pages is not None
        self.plan, self.is_donated = plan, donor is not None
        self.now: _Pass | None = None
        self.keys: PagedRoom
        self.values: PagedRoom
        if donor is not None:
            self.keys, self.values = donor.keys, donor.values
            return
        shape, size = plan.shape, plan.pages.page_tokens
        kernel = chosen_kernel(plan.pages.kernel, view.device, view.dtype)
        key, value = (
            torch.empty((1, shape.kv_heads, 0, dim), dtype=view.dtype, device=view.device)
            for dim in (shape.key_dim, shape.value_dim)
        )
        self.keys = PagedRoom(plan.codec.key_format, key, pages, size, kernel)
        self.values = self.keys
        if not shape.values_are_keys:
            self.values = PagedRoom(plan.codec.value_format, value, pages, size, kernel)

    @property
    def rooms(self) -> Sequence[PagedRoom]:
        """Where entries lie, if they are this layer's own."""
        return () if self.is_donated else (self.keys,) if self.values is self.keys else (self.keys, self.values)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, step: Step) -> Tensor:
        """Store the new entries of all sequences, copy what some of them go on from, and attend to each one's own.

        Args:
            query: [1, H, T, D], the sequences one behind the other.
            key: [1, G, T, D].
            value: [1, G, T, D_v].
            scale: factor of the logits.
            step: without meaning here.

        Returns:
            The output [1, H, T, D_v].
        """
        now = self.now
        assert now is not None
        for room, entries in zip(self.rooms, (key, value), strict=False):
            if len(now.begun) > 0:
                room.clear(now.begun)
            room.store(now.page, now.slot, entries)
            for copy in now.copies:
                room.copy(copy.source, copy.target, copy.slots)
        out = query.new_empty((*query.shape[:3], self.plan.shape.value_dim))
        if len(now.single) > 0:
            rows = query[0].index_select(1, now.single).transpose(0, 1)[:, :, None]
            last = now.visible.shape[2]
            keys, values = (
                Rows([First(room.through(now.index), last)], query.dtype) for room in (self.keys, self.values)
            )
            found, _ = attend_one(rows, [Tile(keys, values, visible=now.visible)], scale, with_weights=False)
            out[0].index_copy_(1, now.single, found[:, :, 0].transpose(0, 1))
        for long in now.long:
            out[:, :, long.at] = self._attend(long, query, key, value, scale)
        return out

    def _attend(self, long: _Long, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attend with several tokens of a sequence to all of its entries, as they are kept."""
        mine, length = query[:, :, long.at], long.position.shape[2]
        new = mine.shape[2]
        if new == length and self.plan.codec.is_exact:
            return attend_causal(mine, key[:, :, long.at], value[:, :, long.at], scale)
        keys, values = (room.read(long.pages, length) for room in (self.keys, self.values))
        if new == length:
            return attend_causal(mine, keys, values, scale)
        at = long.position[:, 0, length - new :]
        return attend_prompt(mine, keys, values, scale, position=long.position, query_position=at, window=0)


class SharedCache(Door):
    """Entries of many sequences; who may write to which page is for whoever hands them out to say.

    Args:
        plans: one per layer; `CacheStrategy.cannot_share` says which will not do.
        view: of the model.
        num_pages: how many there are.
    """

    layers: list[SharedLayer]  # type: ignore[assignment]

    def __init__(self, plans: Sequence[LayerPlan], view: ModelView, num_pages: int) -> None:
        pages = plans[0].pages
        assert pages is not None
        self.view, self.num_pages, self.page_tokens = view, num_pages, pages.page_tokens
        layers: list[SharedLayer] = []
        for plan in plans:
            donor = None if plan.shape.donor is None else layers[plan.shape.donor]
            layers.append(SharedLayer(plan, num_pages, view, donor))
        super().__init__(layers=layers)  # type: ignore[arg-type]

    def begin(self, pieces: Sequence[Piece], copies: Sequence[Copy] = ()) -> None:
        """Say what the next pass reads, the pieces one behind the other."""
        size, device = self.page_tokens, self.view.device
        at = [range(piece.start, piece.stop) for piece in pieces]
        *starts, _ = accumulate((piece.tokens for piece in pieces), initial=0)
        page = [piece.pages[p // size] for piece, mine in zip(pieces, at, strict=True) for p in mine]
        position = torch.tensor([p for mine in at for p in mine], device=device)
        targets = {copy.target for copy in copies}
        begun = [
            piece.pages[piece.stop // size]
            for piece in pieces
            if piece.stop % size and (piece.stop % size <= piece.tokens or piece.pages[piece.stop // size] in targets)
        ]
        alone = [(piece, start) for piece, start in zip(pieces, starts, strict=True) if piece.tokens == 1]
        most = max((piece.stop for piece, _ in alone), default=0)
        tables = [self._pages_of(piece) for piece, _ in alone]
        columns = -(-most // size)
        table = [[*pages, *[EMPTY] * (columns - len(pages))] for pages in tables]
        until = torch.tensor([piece.stop for piece, _ in alone], device=device)[:, None, None]
        now = _Pass(
            page=torch.tensor(page, device=device)[None],
            slot=(position % size)[None],
            position=position[None],
            begun=torch.tensor(begun, dtype=torch.int64, device=device),
            copies=copies,
            single=torch.tensor([start for _, start in alone], dtype=torch.int64, device=device),
            index=torch.tensor(table, dtype=torch.int32, device=device).view(len(alone), columns),
            visible=torch.arange(most, device=device) < until,
            long=[
                _Long(
                    at=slice(start, start + piece.tokens),
                    pages=torch.tensor(self._pages_of(piece), device=device),
                    position=torch.arange(piece.stop, dtype=torch.int32, device=device)[None, None],
                )
                for piece, start in zip(pieces, starts, strict=True)
                if piece.tokens > 1
            ],
        )
        for layer in self.layers:
            layer.now = now

    def _pages_of(self, piece: Piece) -> Sequence[int]:
        """Return the pages that a sequence's entries lie in once a pass is done."""
        return piece.pages[: -(-piece.stop // self.page_tokens)]

    @property
    def position_ids(self) -> Tensor:
        """Positions [1, T] of the tokens of this pass."""
        now = self.layers[0].now
        assert now is not None
        return now.position

    def update(  # type: ignore[override]
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Handle, Handle]:
        """Return handles; nothing is stored before the attention function runs."""
        handle = Handle(self.layers[layer_idx], key_states, value_states, DECODE)
        return handle, handle

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: each sequence has a length of its own, which positions say."""
        return 0

    def tensors(self) -> list[Tensor]:
        """Return everything held between passes."""
        return [tensor for layer in self.layers for room in layer.rooms for tensor in room.tensors()]

    def allocated_bytes(self) -> int:
        """Return the bytes of every storage."""
        return storage_bytes(self.tensors())

    @property
    def page_bytes(self) -> int:
        """Bytes of a page of all layers."""
        rooms = [room for layer in self.layers for room in layer.rooms]
        return sum(kept[0].nbytes for room in rooms for kept in room.kept)
