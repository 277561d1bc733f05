"""Models on several devices whose caches do not know it."""

from __future__ import annotations

from functools import partial

import torch

from kvbench.cache.plan import padding_bytes
from kvbench.strategies import base
from kvbench.types import ModelView
from tests.mutants.core_mutant import Mutant
from tests.support import spread


def first(view: ModelView, layer: int) -> torch.device:
    """Return the device that reads ids, whichever layer is asked about."""
    return view.device


MUTANTS = (
    Mutant(
        name="every layer keeps its entries on the first device",
        patches=((ModelView, "device_of", first),),
        killed_by=(
            partial(spread.entries_are_where_their_layer_is, "baseline", "llama"),
            partial(spread.entries_are_where_their_layer_is, "turboquant4", "llama"),
        ),
        error=Exception,
    ),
    Mutant(
        name="the padding is counted once",
        patches=((base, "padding_bytes", lambda run: padding_bytes(run) // 2),),
        killed_by=(spread.padding_is_counted_on_each_device,),
    ),
)
