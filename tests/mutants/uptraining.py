"""Training on from a converted member with one thing wrong each."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from kvbench import train, uptraining
from tests.mutants.core_mutant import Mutant
from tests.mutants.family import forgets
from tests.support import family
from tests.support import uptraining as oracles

converted, recipe_of = uptraining.converted, uptraining.recipe_of
begins = partial(family.in_a_folder, oracles.without_steps_it_is_the_transform)
goes_on = partial(family.in_a_folder, oracles.uptraining_goes_on_exactly)


def at_random(start: Any) -> Mapping[str, Tensor]:
    """Begin with other weights."""
    return {name: torch.randn_like(weight) for name, weight in converted(start).items()}


def never_aligned(start: Any) -> Mapping[str, Tensor]:
    """Leave heads as they are."""
    return converted(OmegaConf.merge(start, {"align": "none"}))


def nothing(start: Any) -> Mapping[str, Tensor]:
    """Begin as any untrained network does."""
    return train.network(oracles.recipe("none", 0).model, family.VOCABULARY).state_dict()


def as_the_first(source: str, recipes: Mapping[str, Any], num_groups: int, *, align: str, share: float) -> Any:
    """Keep the schedule of the first training."""
    return OmegaConf.merge(recipes[source], {"optimiser": {"steps": round(share * recipes[source].optimiser.steps)}})


MUTANTS = (
    Mutant(name="random weights", patches=((uptraining, "converted", at_random),), killed_by=(begins,)),
    Mutant(name="never aligned", patches=((uptraining, "converted", never_aligned),), killed_by=(begins,)),
    Mutant(name="training begins anew", patches=((train, "converted", nothing),), killed_by=(begins,)),
    Mutant(
        name="an optimiser that forgets",
        patches=((torch.optim.AdamW, "load_state_dict", forgets),),
        killed_by=(goes_on,),
    ),
    Mutant(
        name="the first training's schedule",
        patches=((uptraining, "recipe_of", as_the_first),),
        killed_by=(oracles.a_share_of_the_steps_is_a_whole_training,),
    ),
)
