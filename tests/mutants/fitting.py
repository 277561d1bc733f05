"""Ways to fit a cache to a memory that each get one thing wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from kvbench.cache.plan import LayerPlan
from kvbench.planning.recompute import Choice
from kvbench.planning.split import split_to_fit
from kvbench.strategies.placement import fitting
from kvbench.strategies.placement.fitting import Fitting
from kvbench.strategies.placement.tiers import Tiers
from tests.mutants.core_mutant import Mutant
from tests.support import fitting as checks

needed, allocated, place, fitted_share = Fitting.needed, fitting.allocated_bytes, Tiers._place, Tiers.fitted_share


def without_weights(self: Fitting, host: float) -> int:
    """Count the cache and the activations alone."""
    return needed(self, host) - self.view.sizes.weights_bytes


def an_entry_too_many(tokens: int, needed: Callable[[int], float], memory_bytes: float) -> Choice:
    """Keep one more than has room."""
    found = split_to_fit(tokens, needed, memory_bytes)
    return replace(found, value=min(tokens, found.value + 1))


def all_or_nothing(tokens: int, needed: Callable[[int], float], memory_bytes: float) -> Choice:
    """Send everything away where not everything has room."""
    found = split_to_fit(tokens, needed, memory_bytes)
    return replace(found, value=found.value // tokens * tokens)


def without_buffers(plans: Sequence[LayerPlan], *others: Any) -> int:
    """Have entries come to where nothing is."""
    ahead = [replace(p, place=p.place and replace(p.place, attend="host")) for p in plans]
    return allocated(ahead, *others)


def always_divided(self: Tiers, host: float, recomputed: int) -> object:
    """Fetch through buffers even where nothing lies elsewhere."""
    return place(self, max(host, 1e-9), recomputed)


def nothing_chosen(self: Tiers, plans: Sequence[LayerPlan]) -> float | None:
    """Record the share of a layer that has all of it on the device."""
    return None if fitted_share(self, plans) is None else 0.0


LEAST = checks.the_least_share_with_which_there_is_room

MUTANTS = (
    Mutant(
        name="weights weigh nothing",
        patches=((Fitting, "needed", without_weights),),
        killed_by=(LEAST, checks.what_is_said_to_be_needed_is_enough),
    ),
    Mutant(
        name="an entry too many stays",
        patches=((fitting, "split_to_fit", an_entry_too_many),),
        killed_by=(LEAST,),
    ),
    Mutant(name="all or nothing stays", patches=((fitting, "split_to_fit", all_or_nothing),), killed_by=(LEAST,)),
    Mutant(name="buffers take no room", patches=((fitting, "allocated_bytes", without_buffers),), killed_by=(LEAST,)),
    Mutant(
        name="nothing stays whole", patches=((Tiers, "_place", always_divided),), killed_by=(checks.what_fits_stays,)
    ),
    Mutant(
        name="all of the memory is said to be enough",
        patches=((fitting, "SAFETY", 1.0),),
        killed_by=(checks.what_is_said_to_be_needed_is_enough,),
    ),
    Mutant(
        name="the share is not recorded",
        patches=((Tiers, "fitted_share", nothing_chosen),),
        killed_by=(checks.rows_say_what_was_chosen,),
    ),
)
