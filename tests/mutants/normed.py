"""Norms with other code for a token per row, with one thing wrong each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kvbench.models import normed as module
from kvbench.models.normed import Fewer, normed, renorm
from tests.mutants.core_mutant import Mutant
from tests.support import normed as checks


def of_squares_alone(rows: Tensor, weight: Tensor, least: float) -> Tensor | None:
    """Add nothing to the mean squares."""
    return normed(rows, weight, 0.0)


def one_at_a_time(rows: Tensor, weight: Tensor, least: float) -> Tensor | None:
    """Take as many operations as the model's own code does."""
    if rows.dim() != 3 or rows.shape[1] != 1:
        return None
    return weight * (rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + least))


def of_any_number(rows: Tensor, weight: Tensor, least: float) -> Tensor | None:
    """Take float64 rows, too, which the model rounds to float32."""
    return one_at_a_time(rows, weight, least) if rows.dtype == torch.float64 else normed(rows, weight, least)


def of_the_first_token(rows: Tensor, weight: Tensor, least: float) -> Tensor | None:
    """Divide all tokens of a row by the first one's root."""
    first = normed(rows[:, :1], weight, least)
    return None if first is None else weight * rows * (first[..., :1] / (weight * rows[:, :1])[..., :1])


def has_weights(norm: nn.Module) -> bool:
    """Take whatever has weights for a norm by mean squares."""
    return hasattr(norm, "weight")


def once(model: nn.Module, fewer: Fewer) -> None:
    """Leave norms alone that have other code already."""
    if not any(isinstance(each, module._Normed) for each in model.modules()):
        renorm(model, fewer)


MUTANTS = (
    Mutant(
        name="nothing is added to the mean squares",
        patches=((checks, "normed", of_squares_alone),),
        killed_by=(checks.a_token_is_divided_by_its_root,),
    ),
    Mutant(
        name="a norm takes as many operations as ever",
        patches=((checks, "normed", one_at_a_time),),
        killed_by=(checks.a_token_is_divided_by_its_root,),
    ),
    Mutant(
        name="other numbers than float32 are taken",
        patches=((checks, "normed", of_any_number),),
        killed_by=(checks.all_else_is_as_it_was,),
    ),
    Mutant(
        name="tokens are divided by the first one's root",
        patches=((checks, "normed", of_the_first_token),),
        killed_by=(checks.all_else_is_as_it_was,),
    ),
    Mutant(
        name="whatever has weights is a norm by mean squares",
        patches=((module, "_is_norm", has_weights),),
        killed_by=(checks.all_else_is_as_it_was,),
    ),
    Mutant(
        name="the first code stays",
        patches=((checks, "renorm", once),),
        killed_by=(checks.the_last_code_is_what_runs,),
    ),
)
