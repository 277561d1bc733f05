"""Tensors whose bytes lie in the host's memory or in a file."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from torch import Tensor

from kvbench.cache.placement.files import File
from kvbench.cache.placement.rooms import Tier


class Area(Protocol):
    """Numbers that are written and read in place."""

    @property
    def tier(self) -> Tier:
        """Where they lie."""

    @property
    def data(self) -> Tensor:
        """The numbers; a file's are seen through a new tensor each time."""


class InMemory:
    """Numbers in the host's memory, page-locked where another device computes.

    Args:
        size: of the tensor.
        dtype: of the numbers.
        is_pinned: whether they are page-locked.
    """

    tier: ClassVar[Tier] = "host"

    def __init__(self, size: tuple[int, ...], dtype: torch.dtype, *, is_pinned: bool) -> None:
        self.data = torch.empty(size, dtype=dtype, pin_memory=is_pinned)


class InFile:
    """Numbers in a file without a name that is mapped into memory: the operating system writes and reads its pages.

    The file is gone with its last reader, however the process ends.

    Args:
        size: of the tensor.
        dtype: of the numbers.
        folder: where the file lies; "" for the system's folder of temporary files.

    Raises:
        ValueError: if there is no room, or the folder cannot be written.
    """

    tier: ClassVar[Tier] = "disk"

    def __init__(self, size: tuple[int, ...], dtype: torch.dtype, folder: str) -> None:
        self._size, self._dtype = torch.Size(size), dtype
        advice = (
            "Choose another strategy.evicted.folder, a smaller strategy.evicted.offload_size, or "
            "strategy.evicted.mmap=false."
        )
        self._pages = File(self._size.numel() * dtype.itemsize, folder, advice).mapped()

    @property
    def data(self) -> Tensor:
        """The numbers."""
        return torch.frombuffer(self._pages, dtype=self._dtype).view(self._size)
