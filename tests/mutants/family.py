"""Training with one thing wrong each."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import torch
from omegaconf import OmegaConf

from kvbench import train
from kvbench.models import sharing
from kvbench.models.load import load as load_model
from kvbench.models.load import recurrent
from tests.mutants.core_mutant import Mutant
from tests.mutants.tiny import untrained
from tests.support import family

members, batch = train.members, train.Mixture.batch
load = torch.load
goes_on = partial(family.in_a_folder, family.training_goes_on_exactly)
learns = partial(family.in_a_folder, family.training_lowers_the_loss)
recurrent_learn = tuple(
    partial(family.in_a_folder, partial(family.a_recurrent_member_learns, name=name)) for name in recurrent()
)


def widened(**changes: Any) -> Any:
    """Return the recipes with something changed in one of them."""

    def made() -> dict[str, Any]:
        found = members()
        return {**found, "mqa": OmegaConf.merge(found["mqa"], changes)}

    return made


def forgets(self: object, state: object) -> None:
    """Go on with an optimiser that has forgotten everything."""


class _Forgetful(random.Random):
    """A source that cannot be put back where it was."""

    def setstate(self, state: Any) -> None:
        """Begin anew."""


def without_seconds(*arguments: Any, **keywords: Any) -> Any:
    """Count every sitting from 0."""
    return {**load(*arguments, **keywords), "seconds": 0.0}


def no_groups(model: object, factor: int, windows: object) -> dict[str, Any]:
    """Let every layer make its own."""
    return {}


def not_trained(*arguments: Any, **keywords: Any) -> Any:
    """Load a model, and begin its weights anew."""
    loaded = load_model(*arguments, **keywords)
    untrained(loaded.model)
    return loaded


def no_rate(step: int, peak: float, points: object) -> float:
    """Learn nothing."""
    return 0.0


MUTANTS = (
    Mutant(
        name="a member is wider",
        patches=((train, "members", widened(model={"intermediate_size": 600})),),
        killed_by=(family.members_have_as_many_parameters,),
    ),
    Mutant(
        name="a member reads other tokens",
        patches=((train, "members", widened(seed=1)),),
        killed_by=(family.members_read_the_same_tokens,),
    ),
    Mutant(
        name="the optimiser forgets",
        patches=((torch.optim.AdamW, "load_state_dict", forgets),),
        killed_by=(goes_on,),
    ),
    Mutant(
        name="the mixture begins anew",
        patches=((random, "Random", _Forgetful),),
        killed_by=(goes_on,),
    ),
    Mutant(
        name="sittings do not add up",
        patches=((torch, "load", without_seconds),),
        killed_by=(goes_on,),
    ),
    Mutant(
        name="no layer shares",
        patches=((sharing, "sharing", no_groups),),
        killed_by=(partial(family.in_a_folder, partial(family.a_member_that_shares_is_loaded_as_one, "cla")),),
    ),
    Mutant(
        name="what is shipped was not trained",
        patches=((family, "load", not_trained),),
        killed_by=(partial(family.what_is_shipped_is_what_its_card_says, "mha"),),
    ),
    Mutant(
        name="the rate is 0",
        patches=((train, "learning_rate", no_rate),),
        killed_by=(learns, *recurrent_learn),
    ),
)
