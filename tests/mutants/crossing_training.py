"""Training of blocks with one thing wrong each."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kvbench import train, train_crossings
from kvbench.crossing_card import answer_nats
from kvbench.engines.arm import Arm
from kvbench.models.crossing import Crossings
from kvbench.train_crossings import Contexts
from kvbench.types import Sample
from tests.mutants.core_mutant import Mutant
from tests.support import crossing_training

batch, optimised, losses_of = Contexts.batch, train.optimised, train_crossings.losses_of


def of_others(self: Contexts, rows: int, context: int, shares: Mapping[str, float]) -> tuple[Tensor, ...]:
    """Give each row the context of another."""
    contexts, *rest = batch(self, rows, context, shares)
    return contexts.roll(1, 0), *rest


def drawn_anew(recipe: Any, model: Any, losses: Any, rng: random.Random, out: Any, device: str) -> Any:
    """Go on with other rows."""
    return optimised(recipe, model, losses, random.Random(0), out, device)


def early(arm: Arm, samples: Sequence[Sample], contexts: Sequence[Sample]) -> float:
    """Read the contexts of the samples, whatever is asked for."""
    return answer_nats(arm, samples, samples)


def detached(model: Any, crossings: Crossings, given: Any) -> tuple[Tensor, Tensor]:
    """Teach nothing."""
    with torch.enable_grad():
        text, task = losses_of(model, crossings, given)
        return text - text + 3, task - task


def at_random(model: Any, crossings: Crossings, contexts: Tensor) -> None:
    """Begin with nothing of the model."""
    crossings.draw(0)


MUTANTS = (
    Mutant(
        name="blocks begin at random",
        patches=((train_crossings, "begin", at_random),),
        killed_by=(crossing_training.a_block_begins_as_the_layer_behind_it,),
    ),
    Mutant(
        name="contexts are of other rows",
        patches=((Contexts, "batch", of_others),),
        killed_by=(crossing_training.what_is_asked_stands_in_the_context,),
    ),
    Mutant(
        name="what rows are drawn with is forgotten",
        patches=((train_crossings, "optimised", drawn_anew),),
        killed_by=(crossing_training.training_goes_on_exactly,),
    ),
    Mutant(
        name="contexts are always the samples' own",
        patches=((crossing_training, "answer_nats", early),),
        killed_by=(crossing_training.answers_are_scored_behind_their_context,),
    ),
    Mutant(
        name="nothing is learnt",
        patches=((train_crossings, "losses_of", detached),),
        killed_by=(crossing_training.training_lowers_the_loss_of_a_frozen_model,),
    ),
)
