"""How many columns a cache has seen, where a step that was recorded once finds it."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor


class Clock:
    """A number that is set before every pass and read on the device during it.

    Args:
        device: of the layers that read it.
    """

    def __init__(self, device: torch.device) -> None:
        self.now = torch.zeros(1, dtype=torch.int32, device=device)
        self._set_to = 0
        self._made: dict[Hashable, Tensor] = {}  # of this number, for all layers

    def set(self, seen: int) -> None:
        """Say how many columns were seen before the pass that follows."""
        self._set_to = seen
        self.now.fill_(seen)
        self._made.clear()

    def at(self, seen: int) -> Tensor:
        """Return a number of columns [1], as far from the one that was set as `seen` is."""
        ahead = seen - self._set_to
        return self.now if ahead == 0 else self._once(ahead, lambda: self.now + ahead)

    def turn(self, seen: int, period: int) -> Tensor:
        """Return the rest that `at` leaves in periods [1], int64."""
        return self._once((seen - self._set_to, period), lambda: self.at(seen).remainder(period).long())

    def _once(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
