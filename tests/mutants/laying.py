"""Weights laid out, and products joined, with one thing wrong each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from kvbench.models import laying, siblings
from kvbench.models.siblings import _Joint, _Sibling
from tests.mutants.core_mutant import Mutant
from tests.support import laying as checks


def as_they_are(rows: Tensor) -> Tensor:
    """Leave every matrix as it is."""
    return rows


def all_by_columns(rows: Tensor) -> Tensor:
    """Lay every matrix out by columns."""
    return rows.t().contiguous().t()


def of_other_numbers(rows: Tensor) -> Tensor:
    """Take columns for rows."""
    return rows.t().reshape(rows.shape)


class OwnedOnce(Counter[int]):
    """Says that nothing is shared."""

    def __init__(self, owners: Iterable[int]) -> None:
        super().__init__(set(owners))


def each_where_it_is(parts: Sequence[Tensor], by_columns: bool) -> None:
    """Join nothing."""


def in_reverse(parts: Sequence[Tensor], by_columns: bool) -> None:
    """Join the last first."""
    whole = torch.cat([part.data for part in reversed(parts)])
    for part, mine in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        part.data = mine


def weights_alone(parts: Sequence[nn.Linear], *, by_columns: bool) -> None:
    """Leave biases where they are."""
    siblings._join([part.weight for part in parts], by_columns)


def whatever_was_given(self: _Joint, index: int, given: Tensor) -> Tensor:
    """Hand out what the first was given, whoever asks."""
    if index == 0:
        self._made = self.product(given).split(self.widths, dim=-1)
    return self._made[index]


def each_for_itself(self: _Joint, index: int, given: Tensor) -> Tensor:
    """Multiply by all at each call."""
    columns: Tensor = self.product(given).split(self.widths, dim=-1)[index]
    return columns


def of_any_weights(self: _Sibling, input: Tensor) -> Tensor:
    """Take what was joined, whatever the weights are now."""
    made = self.joint.part(self.index, input) if input.shape[-2] == 1 else None
    return nn.Linear.forward(self, input) if made is None else made


def of_many_tokens(self: _Sibling, input: Tensor) -> Tensor:
    """Join the products of prompts, too."""
    made = self.joint.part(self.index, input) if self.weight.data_ptr() == self.address else None
    return nn.Linear.forward(self, input) if made is None else made


MUTANTS = (
    Mutant(
        name="nothing is laid out",
        patches=((laying, "_laid_out", as_they_are),),
        killed_by=(checks.wide_layers_lie_by_columns,),
    ),
    Mutant(
        name="everything lies by columns",
        patches=((laying, "_laid_out", all_by_columns),),
        killed_by=(checks.wide_layers_lie_by_columns,),
    ),
    Mutant(
        name="columns are taken for rows",
        patches=((laying, "_laid_out", of_other_numbers),),
        killed_by=(checks.no_number_changes,),
    ),
    Mutant(
        name="an embedding's weights lie by columns",
        patches=((laying, "Counter", OwnedOnce),),
        killed_by=(checks.tied_weights_lie_by_rows,),
    ),
    Mutant(
        name="nothing is joined",
        patches=((siblings, "_join", each_where_it_is),),
        killed_by=(checks.one_token_is_two_products_a_layer,),
    ),
    Mutant(
        name="biases are not joined",
        patches=((laying, "join", weights_alone),),
        killed_by=(partial(checks.one_token_is_two_products_a_layer, bias=True),),
    ),
    Mutant(
        name="the last is joined first",
        patches=((siblings, "_join", in_reverse),),
        killed_by=(checks.no_number_changes,),
    ),
    Mutant(
        name="a sibling gets what the first was given",
        patches=((_Joint, "part", whatever_was_given),),
        killed_by=(checks.each_multiplies_what_it_is_given,),
    ),
    Mutant(
        name="every sibling multiplies by all",
        patches=((_Joint, "part", each_for_itself),),
        killed_by=(checks.one_token_is_two_products_a_layer,),
    ),
    Mutant(
        name="changed weights are not seen",
        patches=((_Sibling, "forward", of_any_weights),),
        killed_by=(checks.each_multiplies_what_it_is_given,),
    ),
    Mutant(
        name="prompts are joined",
        patches=((_Sibling, "forward", of_many_tokens),),
        killed_by=(checks.one_token_is_two_products_a_layer,),
    ),
)
