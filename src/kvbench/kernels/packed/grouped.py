"""What runs of keys have in common of which neighbouring ones share what they were packed with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor

from kvbench.kernels.packed.reference import BLOCK


class GroupedKeys(ABC):
    """A run of keys, group by group, a few at a time."""

    outlier_rows: ClassVar[float] = 0.0

    @property
    @abstractmethod
    def of_each(self) -> Tensor:
        """What each key has of its own [B, G, m, w]."""

    @property
    @abstractmethod
    def of_groups(self) -> Tensor:
        """What neighbouring keys share [B, G, M, n]."""

    @property
    def length(self) -> int:
        """Rows of each head."""
        return self.of_each.shape[2]

    @property
    def groups(self) -> int:
        """KV heads."""
        return self.of_each.shape[1]

    @property
    def tokens(self) -> int:
        """Rows of a group."""
        return self.length // self.of_groups.shape[2]

    def weighted(self, weights: Tensor) -> Tensor:
        """Never called: values are not written so."""
        raise AssertionError

    def blocks(self, group: int) -> Iterator[tuple[int, int]]:
        """Yield first and last rows of a group, a few at a time."""
        end = (group + 1) * self.tokens
        for start in range(group * self.tokens, end, BLOCK):
            yield start, min(end, start + BLOCK)
