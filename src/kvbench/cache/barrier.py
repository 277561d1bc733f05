"""Where layers that share a budget wait for each other at the end of the prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvbench.cache.protocols import Sharer
from kvbench.cache.views import Scored

Counts = Sequence[Sequence[int | None]]


class Barrier:
    """Holds every layer's scores, keys and values until the last one has arrived; so long the cache is a full one.

    Args:
        layers: how many will arrive.
    """

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self._waiting: list[tuple[Scored, Callable[[Counts], None]]] = []

    def arrive(self, sharer: Sharer, scored: Scored, keep: Callable[[Counts], None]) -> None:
        """Wait; with the last layer, share the budget out and let every layer keep its part.

        Args:
            sharer: what decides.
            scored: the layer that arrives.
            keep: called with the entries kept per row and kept set.
        """
        self._waiting.append((scored, keep))
        if len(self._waiting) < self.layers:
            return
        waiting, self._waiting = self._waiting, []
        shared = sharer.share([scored for scored, _ in waiting])
        while waiting:  # layer by layer, so that what one frees is there for the next
            _, keep = waiting.pop(0)
            keep(shared.pop(0))
