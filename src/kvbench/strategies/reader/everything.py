"""Every entry is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from kvbench.cache.pages import Paging
from kvbench.types import ModelView, RunShape


@dataclass(frozen=True, kw_only=True)
class ReadAll:
    """Every decode step reads all entries."""

    reads_all: ClassVar[bool] = True
    needs_tiers: ClassVar[bool] = False

    def pagings(self, view: ModelView, run: RunShape) -> Sequence[Paging | None]:
        """Return None for every layer."""
        return [None] * len(view.layers)
