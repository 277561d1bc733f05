"""Where the entries of one layer lie between the steps that read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from kvbench.cache.codecs.base import Appended
from kvbench.cache.placement.pieces import Piece, divide, room_of
from kvbench.cache.placement.rooms import ALIGN, Tier, buffer_bytes
from kvbench.cache.placement.tiers import OnHost, Traffic
from kvbench.cache.plan import LayerPlan
from kvbench.cache.rotary import turn
from kvbench.cache.slots import Slots


class Home:
    """Keeps the storages of a layer in parts, and lends them a buffer while the layer attends.

    Between steps the storages are empty; they may be read only while they are lent a buffer.

    Args:
        plan: of the layer.
        nothing: some bytes on the device that stand for all of a storage while it is empty.
    """

    def __init__(self, plan: LayerPlan, nothing: Tensor) -> None:
        assert plan.place is not None
        self.place, self.shape, self._nothing = plan.place, plan.shape, nothing
        self.traffic = Traffic()
        self._underway = Traffic()  # of what comes to a buffer, counted once it is there
        self._pieces: list[list[Piece]] = []  # of each storage
        self._storages: list[Tensor] = []
        self.buffer_bytes = 0  # of the buffer that all storages need
        self._payloads: list[Appended] = []
        self._kept: list[int] = []  # rows of each storage that lie in its parts
        self._hidden: OnHost | None = None  # what the first tokens' keys and values are made of [B, 1, tokens, hidden]
        self._noted = 0  # tokens of it
        self._told: Tensor | None = None  # of the pass under way
        self._position: Tensor | None = None  # of the slots [B, 1, capacity]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing that a buffer is needed for."""
        return not self._storages

    @property
    def _hidden_bytes(self) -> int:
        return 0 if self._hidden is None else self._hidden.bytes

    def keep(self, slots: Sequence[Slots]) -> None:
        """Write what was appended since, and leave the storages empty."""
        self._keep_hidden()
        appended, self._payloads = [], []
        for each in slots:
            for payload in (each.keys, each.values):
                assert isinstance(payload, Appended)
                self._payloads.append(payload)
                appended += payload.appended(each.filled)
        self._position = slots[0].position if slots else None
        storages = [storage for storage, _ in appended]
        if list(map(id, storages)) != list(map(id, self._storages)):  # the first ones, or larger ones
            self._divide(storages)
        for at, (storage, rows) in enumerate(appended):
            self._write(at, storage, self._kept[at], rows)
            self._kept[at] = rows
            empty = self._nothing[: storage.itemsize].view(storage.dtype)
            storage.set_(empty.expand(storage.shape))  # type: ignore[call-overload]

    def _divide(self, storages: list[Tensor]) -> None:
        self._storages, self._kept = storages, [0] * len(storages)
        if self.place.recomputed > 0 and self._hidden is None:
            assert self.shape.key_projection is not None
            width = self.shape.key_projection.weight.shape[2]
            self._hidden = OnHost(storages[0], torch.Size((len(storages[0]), 1, self.place.recomputed, width)))
        self._pieces = [divide(self.place, storage, storage.shape) for storage in storages]
        self.buffer_bytes = (
            buffer_bytes(room_of(storage.shape, storage.dtype) for storage in storages) + self._hidden_bytes
        )

    def _write(self, at: int, storage: Tensor, start: int, stop: int) -> None:
        for piece in self._pieces[at]:
            rows, first = piece.within(storage[:, :, start:stop], start)
            if rows.shape[2] > 0:
                piece.part.put(first, rows, self.traffic)

    def note(self, hidden: Tensor) -> None:
        """Be told what the keys and values of a pass are made of [B, T, hidden]."""
        self._told = hidden

    def _keep_hidden(self) -> None:
        """Keep what was told, as far as it is asked for."""
        hidden, self._told = self._told, None
        if hidden is None:
            return
        tokens = min(hidden.shape[1], self.place.recomputed - self._noted)
        if tokens <= 0:
            return
        assert self._hidden is not None
        self._hidden.put(self._noted, hidden[:, None, :tokens], self.traffic)
        self._noted += tokens

    def copies(self, buffer: Tensor) -> list[Callable[[], None]]:
        """Return what copies all that is kept to a buffer of bytes, in the order it is needed."""
        found = [partial(self._fetch_hidden, buffer, stage) for stage in self._stages()]
        return [partial(self._timed, copy) for copy in (*found, partial(self._fetch, buffer))]

    def _timed(self, copy: Callable[[], None]) -> None:
        began = perf_counter()
        copy()
        self._underway.fetching_s += perf_counter() - began

    def _stages(self) -> list[range]:
        """Return the tokens to make keys and values of, piece by piece."""
        if self._noted == 0:
            return []
        size = -(-self._noted // self.place.stages)
        return [range(first, min(first + size, self._noted)) for first in range(0, self._noted, size)]

    def _fetch_hidden(self, buffer: Tensor, stage: range) -> None:
        assert self._hidden is not None
        into = self._carve_hidden(buffer)[:, :, stage.start : stage.stop]
        self._hidden.get(into, self._underway, stage.start)

    def _carve_hidden(self, buffer: Tensor) -> Tensor:
        assert self._hidden is not None
        data = self._hidden.data
        first = self.buffer_bytes - data.nbytes
        return buffer[first : first + data.nbytes].view(data.dtype).view(data.shape)

    def arrived(self, number: int, buffer: Tensor) -> None:
        """Go on once one of the `copies` has come to the buffer lent: make keys and values of what they are made of."""
        stages = self._stages()
        if number == len(stages):
            self.traffic.add(self._underway)
            self._underway = Traffic()
            return
        tokens = slice(stages[number].start, stages[number].stop)
        assert self._position is not None
        hidden = self._carve_hidden(buffer)[:, 0, tokens]
        made = (self.shape.key_projection, self.shape.value_projection)
        for storage, projection, rotary in zip(self._storages, made, (self.shape.rotary, None), strict=True):
            assert projection is not None
            weight, bias = projection.weight.flatten(0, 1), projection.bias
            rows = torch.nn.functional.linear(hidden, weight, None if bias is None else bias.flatten())
            rows = rows.unflatten(2, projection.weight.shape[:2]).transpose(1, 2)
            storage[:, :, tokens] = rows if rotary is None else turn(rows, self._position[:, :, tokens], rotary)
        self.traffic.recomputed += len(stages[number])

    def _fetch(self, buffer: Tensor) -> None:
        for storage, pieces, kept in zip(self._carve(buffer), self._pieces, self._kept, strict=True):
            for piece in pieces:
                rows, _ = piece.within(storage[:, :, :kept], 0)
                if rows.shape[2] > 0:
                    piece.part.get(rows, self._underway)

    def lend(self, buffer: Tensor) -> None:
        """Let the storages be those of a buffer of bytes."""
        for storage, lent in zip(self._storages, self._carve(buffer), strict=True):
            storage.set_(lent)  # type: ignore[call-overload]
        for payload in self._payloads:
            payload.moved()

    def _carve(self, buffer: Tensor) -> list[Tensor]:
        first, found = 0, []
        for storage in self._storages:
            size = storage.shape.numel() * storage.itemsize
            found.append(buffer[first : first + size].view(storage.dtype).view(storage.shape))
            first += -(-size // ALIGN) * ALIGN
        return found

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held in memory."""
        hidden = () if self._hidden is None else self._hidden.tensors()
        return (*hidden, *(t for pieces in self._pieces for piece in pieces for t in piece.part.tensors()))

    def bytes_on(self, tier: Tier) -> int:
        """Return the bytes that lie in one tier."""
        hidden = self._hidden_bytes if tier == "host" else 0
        return hidden + sum(piece.part.bytes for pieces in self._pieces for piece in pieces if piece.tier == tier)

    def snapshot(self) -> list[int]:
        """Return what `restore` needs to take back entries appended later."""
        return list(self._kept)

    def restore(self, snapshot: list[int]) -> None:
        """Go back to a snapshot, in the same storage."""
        self._kept = [min(now, then) for now, then in zip(self._kept, snapshot, strict=True)]
