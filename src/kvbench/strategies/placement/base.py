"""What a strategy is told of where entries lie."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import nn

    from kvbench.cache.kv_cache import KVCache
    from kvbench.cache.placement.rooms import Place
    from kvbench.cache.placement.tiers import Traffic
    from kvbench.cache.plan import LayerPlan
    from kvbench.types import ModelView, RunShape


class Placing(Protocol):
    """Where the entries of layers lie between the steps that read them."""

    @property
    def is_elsewhere(self) -> bool:
        """Whether any lie elsewhere than on the device."""

    @property
    def link(self) -> Literal["real", "modelled"]:
        """The link that what moves crosses."""

    @property
    def hardware(self) -> str:
        """Record of this machine; "" for what `kvbench hardware` wrote last."""

    def lacks(self, view: ModelView, run: RunShape) -> str | None:
        """Return what is not known of the machine that has to be, or None."""

    def of_run(self, view: ModelView, run: RunShape, plans: Sequence[LayerPlan]) -> Place | None:
        """Return where the entries of a layer lie, given plans that have them on the device; None for the device."""

    def fitted_share(self, plans: Sequence[LayerPlan]) -> float | None:
        """Return the host's share that was chosen for the device's memory; None where it is given."""

    def watch(self, model: nn.Module, cache: KVCache) -> AbstractContextManager[None]:
        """Return a context in which the model has the hooks that are needed while it reads a prompt."""

    def link_ms(self, before: Traffic, after: Traffic, steps: int) -> float | None:
        """Return the time that what moved in so many steps would take a link, per step; None where none is modelled."""

    def unsupported(self, plans: Sequence[LayerPlan], view: ModelView, run: RunShape) -> str | None:
        """Return why the entries of these layers cannot lie so, or None."""
