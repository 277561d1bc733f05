"""Values that are their keys, and so need no room of their own."""

from __future__ import annotations

from torch import Tensor

from kvbench.cache.codecs.base import Payload
from kvbench.kernels.attend import Entries


class Same:
    """What reads keys as values.

    Args:
        keys: where they are written.
    """

    def __init__(self, keys: Payload) -> None:
        self.keys = keys

    @property
    def capacity(self) -> int:
        """Slots per row."""
        return self.keys.capacity

    def write(self, start: int, entries: Tensor, position: Tensor | int | None = None) -> None:
        """Do nothing: keys are written."""

    def scatter(self, slot: Tensor, entry: Tensor, position: Tensor | int | None = None) -> None:
        """Do nothing: keys are written."""

    def settle(self, position: Tensor) -> None:
        """Do nothing: keys settle."""

    def entries(self, stop: int, position: Tensor) -> Tensor | Entries:
        """Return what attention reads of slots 0 .. stop."""
        return self.keys.entries(stop, position)

    def read(self, stop: int, position: Tensor | None = None) -> Tensor:
        """Return the keys of slots 0 .. stop."""
        return self.keys.read(stop, position)

    def unused_bytes(self) -> int:
        """Return 0: there are none."""
        return 0

    def grow(self, capacity: int, used: int) -> None:
        """Do nothing: keys grow."""

    def tensors(self) -> tuple[Tensor, ...]:
        """Return nothing: keys hold everything."""
        return ()

    def snapshot(self) -> None:
        """Return nothing: keys do."""

    def restore(self, snapshot: object) -> None:
        """Do nothing: keys go back."""
