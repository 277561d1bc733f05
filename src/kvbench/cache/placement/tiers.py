"""Parts of a storage that lie in memory or on disk, written as entries come and copied to a buffer when needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from kvbench.cache.placement.files import File
from kvbench.cache.placement.rooms import Tier


@dataclass(kw_only=True)
class Traffic:
    """What moved between tiers, in bytes, and how often attention found its entries at hand.

    On a GPU copies go on after the host asked for them: its times are those that the host spends, and waits, itself.

    Args:
        up: from the host to the device.
        down: from the device to the host.
        read: from disk.
        written: to disk.
        near: copied on the device, beside what came to it.
        recomputed: tokens whose keys and values a layer made again.
        fetches: times something was sent for: a layer's entries, its answer, or the pages it lacks.
        waits: those of them that were not there yet.
        asked: pages that steps read of what has left.
        hits: those of them that lay on the device already.
        stalled_s: time that layers waited for their entries [s].
        fetching_s: time that bringing them took, whoever did it [s].
    """

    up: int = 0
    down: int = 0
    read: int = 0
    written: int = 0
    near: int = 0
    recomputed: int = 0
    fetches: int = 0
    waits: int = 0
    asked: int = 0
    hits: int = 0
    stalled_s: float = 0.0
    fetching_s: float = 0.0

    def add(self, other: Traffic) -> None:
        """Count what another has counted, too."""
        for name, count in vars(other).items():
            setattr(self, name, getattr(self, name) + count)


class Part(Protocol):
    """A part [B, G, rows, ...] of a storage."""

    @property
    def tier(self) -> Tier:
        """Where it lies."""

    @property
    def bytes(self) -> int:
        """Bytes it takes there."""

    def put(self, at: int, rows: Tensor, traffic: Traffic) -> None:
        """Keep rows [B, G, n, ...] at `at`, at + 1 ... of dimension 2."""

    def get(self, into: Tensor, traffic: Traffic) -> None:
        """Copy the first rows to a buffer [B, G, n, ...]."""

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held in memory."""


class OnDevice:
    """Rows that lie where the model computes.

    Args:
        data: room for them [B, G, rows, ...].
    """

    tier: ClassVar[Tier] = "device"

    def __init__(self, data: Tensor) -> None:
        self.data = data

    @property
    def bytes(self) -> int:
        """Bytes of the rows."""
        return self.data.nbytes

    def put(self, at: int, rows: Tensor, traffic: Traffic) -> None:
        """Keep rows."""
        self.data.narrow(2, at, rows.shape[2]).copy_(rows)

    def get(self, into: Tensor, traffic: Traffic) -> None:
        """Copy rows."""
        into.copy_(self.data.narrow(2, 0, into.shape[2]))
        traffic.near += into.nbytes

    def entries(self, count: int) -> Tensor:
        """Return the first rows as attention reads them."""
        return self.data.narrow(2, 0, count)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the rows."""
        return (self.data,)


class OnHost(OnDevice):
    """Rows in the host's memory, page-locked where another device computes.

    Args:
        like: the storage they are a part of.
        size: [B, G, rows, ...].
    """

    tier: ClassVar[Tier] = "host"

    def __init__(self, like: Tensor, size: torch.Size) -> None:
        super().__init__(torch.empty(size, dtype=like.dtype, pin_memory=like.device.type == "cuda"))
        self._crosses = like.device.type != "cpu"

    def put(self, at: int, rows: Tensor, traffic: Traffic) -> None:
        """Send rows down."""
        self._copy(self.data.narrow(2, at, rows.shape[2]), rows)
        traffic.down += rows.nbytes

    def get(self, into: Tensor, traffic: Traffic, first: int = 0) -> None:
        """Send rows up, beginning with the first one or another."""
        self._copy(into, self.data.narrow(2, first, into.shape[2]))
        traffic.up += into.nbytes

    def _copy(self, target: Tensor, source: Tensor) -> None:
        if not self._crosses:
            target.copy_(source)
            return
        for row in range(len(target)):  # only what lies in one piece crosses without the host's waiting for it
            for head in range(target.shape[1]):
                target[row, head].copy_(source[row, head], non_blocking=True)


class OnDisk:
    """Rows in a file without a name, entry by entry, so that what is appended, or read, lies in one piece.

    The file is gone with its last reader, however the process ends.

    Args:
        like: the storage they are a part of.
        size: [B, G, rows, ...].
        folder: where the file lies; "" for the system's folder of temporary files.
        is_cold: whether what was read is forgotten by the operating system's cache, so that it comes from the disk
            again.

    Raises:
        ValueError: if there is no room, or the folder cannot be written.
    """

    tier: ClassVar[Tier] = "disk"

    def __init__(self, like: Tensor, size: torch.Size, folder: str, *, is_cold: bool) -> None:
        self._size, self._dtype, self._is_cold = size, like.dtype, is_cold
        self.row_bytes = like.itemsize * (size.numel() // size[2])
        advice = "Choose another strategy.placement.folder, or a smaller strategy.placement.disk."
        self._file = File(self.row_bytes * size[2], folder, advice)

    @property
    def bytes(self) -> int:
        """Bytes of the rows."""
        return self.row_bytes * self._size[2]

    def put(self, at: int, rows: Tensor, traffic: Traffic) -> None:
        """Write rows."""
        self._file.write(at * self.row_bytes, rows.movedim(2, 0).to("cpu").contiguous())
        traffic.written += rows.nbytes

    def get(self, into: Tensor, traffic: Traffic) -> None:
        """Read rows."""
        rows = torch.empty((into.shape[2], *self._size[:2], *self._size[3:]), dtype=self._dtype)
        self._file.read(0, rows)
        into.copy_(rows.movedim(0, 2))
        traffic.read += into.nbytes
        if self._is_cold:
            self._file.forget()

    def tensors(self) -> tuple[Tensor, ...]:
        """Return nothing: what is read passes through."""
        return ()
