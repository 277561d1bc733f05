"""How much of a cache has to lie with the host, for a device to hold the model and the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, log10
from typing import TYPE_CHECKING

import torch

from kvbench.cache.codecs.base import Movable
from kvbench.cache.placement.rooms import Place, buffer_bytes, placed, rooms_of
from kvbench.cache.plan import LayerPlan, padding_bytes
from kvbench.planning.network import activations_bytes
from kvbench.planning.split import SAFETY, split_to_fit

if TYPE_CHECKING:
    from kvbench.types import ModelView, RunShape

GIB = 2**30


def can_move(plans: Sequence[LayerPlan]) -> bool:
    """Return whether entries of all layers but windows are written once, and may lie elsewhere."""
    return all(isinstance(how, Movable) for plan in plans if plan.shape.window == 0 for how in plan.formats)


def placed_as(plans: Sequence[LayerPlan], place: Place | None) -> list[LayerPlan]:
    """Return plans whose entries lie so; windows stay on the device."""
    return [replace(plan, place=None if plan.shape.window > 0 else place) for plan in plans]


def allocated_bytes(plans: Sequence[LayerPlan], run: RunShape, dtype: torch.dtype) -> int:
    """Return the bytes held on the device once the prompt is read: every storage, metadata included."""
    total = padding_bytes(run) + sum(plan.allocated_bytes(run, dtype) for plan in plans)
    return total + placed(plans, run, dtype).device


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """What a device holds, by the share of the cache that the host has.

    Args:
        plans: of layers whose entries all lie on the device.
        view: of the model.
        run: how long the rows of the batch are.
        place_of: where entries lie, by the host's share; None for the device.
        most: share that the host can have.
    """

    plans: Sequence[LayerPlan]
    view: ModelView
    run: RunShape
    place_of: Callable[[float], Place | None]
    most: float

    def share(self, memory_bytes: float) -> float:
        """Return the least share of the host's, in whole entries, with which the device has room; or the most."""
        parts = self._parts
        kept = split_to_fit(parts, lambda kept: self.needed(self._without(kept, parts)), memory_bytes).value
        return self._without(kept, parts)

    def _without(self, kept: int, parts: int) -> float:
        return self.most * (parts - kept) / parts if parts > 0 else 0.0

    @property
    def _parts(self) -> int:
        """Entries of the largest storage, or rows of the batch."""
        place = self.place_of(self.most)
        assert place is not None
        plans = [plan for plan in placed_as(self.plans, place) if plan.place is not None]
        rooms = [room for plan in plans for room in rooms_of(plan, self.run, self.view.dtype)]
        by_row = place.shares.axis == "batch"
        return max((room.batch if by_row else room.entries for room in rooms), default=0)

    def needed(self, host: float) -> int:
        """Return the bytes on the device: weights, what a pass over the prompt needs, and its part of the cache."""
        run, dtype, place = self.run, self.view.dtype, self.place_of(host)
        plans = placed_as(self.plans, place)
        passing = activations_bytes(self.view.sizes, dtype.itemsize, run.batch_size, run.prompt_tokens)
        if place is not None and place.attend == "host":  # a prompt's layer is whole before it is divided
            rooms = (rooms_of(plan, run, dtype) for plan in plans if plan.place is not None)
            passing += max(map(buffer_bytes, rooms), default=0)
        return self.view.sizes.weights_bytes + passing + allocated_bytes(plans, run, dtype)

    def misfit(self, memory_bytes: float) -> str | None:
        """Return what is needed, where the device has no room whatever the host has, or None."""
        least = min(self.needed(0.0), self.needed(self.most))
        if least <= SAFETY * memory_bytes:
            return None
        return (
            f"strategy.placement.memory_gib={memory_bytes / GIB:.3g} has no room for {_rounded_up(least)} GiB: weights "
            f"({_rounded_up(self.view.sizes.weights_bytes)}), a pass over the prompt, and what a cache on the host "
            f"still needs. Set strategy.placement.memory_gib to at least {_rounded_up(least / SAFETY)}, of "
            f"which a tenth is left, or shorten the prompt"
        )


def _rounded_up(num_bytes: float) -> str:
    """Return GiB with three digits."""
    decimals = 2 - floor(log10(num_bytes / GIB))
    return f"{ceil(num_bytes / GIB * 10**decimals) / 10**decimals:.{max(0, decimals)}f}"
