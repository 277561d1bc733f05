"""Everything lies where the model computes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from kvbench.strategies.placement.link import Link

if TYPE_CHECKING:
    from torch import nn

    from kvbench.cache.kv_cache import KVCache
    from kvbench.cache.plan import LayerPlan
    from kvbench.types import ModelView, RunShape


@dataclass(frozen=True, kw_only=True)
class OnDevice(Link):
    """Every entry stays on the device; what leaves to tiers of memory may cross a link."""

    is_elsewhere: ClassVar[bool] = False
    hardware: ClassVar[str] = ""

    def lacks(self, view: ModelView, run: RunShape) -> None:
        """Return None: nothing has to be known."""

    def of_run(self, view: ModelView, run: RunShape, plans: Sequence[LayerPlan]) -> None:
        """Return None: nothing lies elsewhere."""

    def fitted_share(self, plans: Sequence[LayerPlan]) -> None:
        """Return None: nothing is divided."""

    def watch(self, model: nn.Module, cache: KVCache) -> contextlib.AbstractContextManager[None]:
        """Return a context without hooks."""
        return contextlib.nullcontext()

    def unsupported(self, plans: Sequence[LayerPlan], view: ModelView, run: RunShape) -> None:
        """Return None: every layer's can."""
