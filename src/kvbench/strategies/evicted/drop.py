"""Entries that leave are gone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvbench.cache.plan import LayerPlan
from kvbench.cache.slots import Slots
from kvbench.cache.views import Leaving, Merged
from kvbench.types import LayerShape


class EvictedDefaults:
    """Makes something of what leaves, takes no room of its own, weighs nothing and remembers nothing."""

    merges: ClassVar[bool] = True
    weighs: ClassVar[bool] = False
    num_reserved: ClassVar[int] = 0

    def state_width(self, shape: LayerShape) -> int:
        """Return 0: no numbers are kept beside the entries."""
        return 0


@dataclass(frozen=True, kw_only=True)
class Drop(EvictedDefaults):
    """Nothing becomes of them."""

    merges: ClassVar[bool] = False

    def at_prompt_end(self, leaving: Leaving) -> Merged:
        """Never called: nothing merges."""
        raise AssertionError

    def while_decoding(self, slots: Slots, victims: Tensor, plan: LayerPlan) -> None:
        """Never called: nothing merges."""
        raise AssertionError
