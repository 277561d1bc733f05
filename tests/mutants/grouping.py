"""Heads that become one with one thing wrong each."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kvbench.models.norms import weight_of
from kvbench.models.view import view_of
from kvbench.strategies.transform import aligning, grouped
from kvbench.strategies.transform.grouped import Grouped
from kvbench.types import ModelView
from tests.mutants.core_mutant import Mutant
from tests.support import grouping

rotations, angles = aligning.rotations, aligning.angles
like, projections = grouped._like, grouped._projections


def summed(attention: nn.Module, heads: Any) -> Any:
    """Take the sum of two heads for their mean."""
    return projections(attention, (heads[0], 2 * heads[1], heads[2]))


def not_turned(heads: Tensor, num_groups: int) -> Tensor:
    """Leave heads as they are."""
    return torch.eye(heads.shape[1], dtype=heads.dtype).expand(len(heads), -1, -1)


def backwards(heads: Tensor, num_groups: int) -> Tensor:
    """Turn planes the other way."""
    return -angles(heads, num_groups)


def away(heads: Tensor, num_groups: int) -> Tensor:
    """Turn by the inverse."""
    return rotations(heads, num_groups).mT


def without_output(linear: nn.Module, weight: Tensor, bias: object) -> nn.Module:
    """Leave the output projection as it was."""
    return linear if weight.shape == weight_of(linear).shape else like(linear, weight, bias)


def same_config(made: Any, model: Any, num_key_value_heads: int) -> nn.Module:
    """Say the number of heads in the config of the model that is given."""
    model.config.get_text_config().num_key_value_heads = num_key_value_heads
    return made  # type: ignore[no-any-return]


def unprepared(self: Grouped, model: nn.Module) -> nn.Module:
    """Change nothing."""
    return model


def of_the_model(self: Grouped, view: ModelView) -> ModelView:
    """Say the shapes of the model that is given."""
    return view


def unasked(self: Grouped, prepared: nn.Module, view: ModelView) -> ModelView:
    """Forget how the model was asked for."""
    return view_of(prepared)


MUTANTS = (
    Mutant(
        name="keys are summed",
        patches=((grouped, "_projections", summed),),
        killed_by=(
            partial(grouping.as_many_groups_as_heads_change_nothing, "gpt2"),
            partial(grouping.heads_that_are_alike_become_one, "llama_mha"),
        ),
    ),
    Mutant(
        name="values are not turned",
        patches=((aligning, "rotations", not_turned),),
        killed_by=(partial(grouping.heads_that_are_alike_but_turned_become_one, "llama_mha"),),
    ),
    Mutant(
        name="planes are turned the other way",
        patches=((aligning, "angles", backwards),),
        killed_by=(partial(grouping.heads_that_are_alike_but_turned_become_one, "phi3"),),
    ),
    Mutant(
        name="heads are turned the other way",
        patches=((aligning, "rotations", away),),
        killed_by=(partial(grouping.heads_that_are_alike_but_turned_become_one, "gpt2"),),
    ),
    Mutant(
        name="the output is not turned back",
        patches=((grouped, "_like", without_output),),
        killed_by=(partial(grouping.heads_that_are_alike_but_turned_become_one, "llama_mha"),),
    ),
    Mutant(
        name="the config is shared",
        patches=((grouped, "with_config", same_config),),
        killed_by=(partial(grouping.the_original_stays_as_it_is, "llama_mha"),),
    ),
    Mutant(
        name="nothing is changed",
        patches=((Grouped, "prepare", unprepared),),
        killed_by=(
            partial(grouping.bytes_fall_with_the_heads, "llama_mha"),
            partial(grouping.as_many_groups_as_heads_change_nothing, "llama_mha"),
            partial(grouping.it_goes_with_other_parts, "llama_mha"),
        ),
    ),
    Mutant(
        name="shapes are those of before",
        patches=((Grouped, "shapes", of_the_model),),
        killed_by=(partial(grouping.shapes_are_known_before, "llama_mha"),),
    ),
    Mutant(
        name="nobody knows how it was asked for",
        patches=((Grouped, "view", unasked),),
        killed_by=(partial(grouping.shapes_are_known_before, "llama_mha"),),
    ),
)
