"""How many columns a cache has seen, where a step that was recorded once finds it."""

from __future__ import annotations

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

    def set(self, seen: int) -> None:
        """Say how many columns were seen before the pass that follows."""
        self._set_to = seen
        self.now.fill_(seen)

    def at(self, seen: int) -> Tensor:
        """Return a number of columns [1], as far from the one that was set as `seen` is."""
        ahead = seen - self._set_to
        return self.now if ahead == 0 else self.now + ahead
