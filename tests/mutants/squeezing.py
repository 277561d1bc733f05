"""SqueezeAttention with one thing wrong each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.layer import CacheLayer
from kvbench.cache.plan import LayerPlan
from kvbench.strategies.budget import squeeze
from kvbench.strategies.budget.squeeze import Squeeze, most_similar
from tests.mutants.core_mutant import Mutant
from tests.support import squeezing

compare, parts, squares = CacheLayer._compare, Squeeze.parts, squeeze._squares


def least_similar(values: Sequence[float]) -> set[int]:
    """Let the layers that attention changes most give."""
    return most_similar([-value for value in values])


def halves(values: Sequence[float]) -> set[int]:
    """Split at the median."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    return set(order[len(order) // 2 :])


def widest_gap(values: Sequence[float], starts: Sequence[float]) -> float:
    """Cut where neighbours lie furthest apart."""
    order = sorted(set(values))
    return -sum(start - order[order.index(start) - 1] for start in starts)


def without_residual(self: CacheLayer, hidden: Tensor, out: Tensor, at: Tensor) -> None:
    """Compare with what attention adds, not with the sum."""
    shape = self.plan.shape
    assert shape.output is not None
    added = out.transpose(1, 2).flatten(2) @ shape.output.flatten(0, 1)
    cosine = torch.nn.functional.cosine_similarity(hidden, added, dim=-1)
    self._similarity = (cosine * (at >= 0)).sum(dim=-1)


def without_bias(self: CacheLayer, hidden: Tensor, out: Tensor, at: Tensor) -> None:
    """Forget what the projection adds to all."""
    plan = self.plan
    self.plan = replace(plan, shape=replace(plan.shape, output_bias=None))
    compare(self, hidden, out, at)
    self.plan = plan


def with_padding(self: CacheLayer, hidden: Tensor, out: Tensor, at: Tensor) -> None:
    """Count padding as tokens."""
    compare(self, hidden, out, at.abs())


def latest_pass(self: CacheLayer, hidden: Tensor, out: Tensor, at: Tensor) -> None:
    """Forget the earlier pieces of a prompt."""
    self._similarity = None
    compare(self, hidden, out, at)


def given_twice(self: Squeeze, shown: Sequence[float], mean: int, plan: LayerPlan) -> list[int]:
    """Let every layer keep the whole share."""
    return parts(replace(self, share_of_least=1.0), shown, mean, plan)


def a_little_less(self: Squeeze, shown: Sequence[float], mean: int, plan: LayerPlan) -> list[int]:
    """Give even where nothing is to be given."""
    return parts(replace(self, share_of_least=self.share_of_least * 0.9), shown, mean, plan)


@contextmanager
def for_good(self: Squeeze, model: Any, cache: Any) -> Iterator[None]:
    """Leave the hooks where they are."""
    for index, layer in enumerate(cache.layers):
        squeeze._decoder_layer(model, index).register_forward_pre_hook(squeeze._teller(layer), with_kwargs=True)
    yield


_SIMILARITY = squeezing.similarity_equals_hidden_states

MUTANTS = (
    Mutant(
        name="those that change most give",
        patches=((squeeze, "most_similar", least_similar), (squeezing, "most_similar", least_similar)),
        killed_by=(
            squeezing.layers_give_as_the_paper_says,
            squeezing.groups_are_the_best_three,
            partial(squeezing.layers_hold_their_share, "llama_gqa"),
        ),
    ),
    Mutant(
        name="half of the layers give",
        patches=((squeeze, "most_similar", halves), (squeezing, "most_similar", halves)),
        killed_by=(squeezing.layers_give_as_the_paper_says, squeezing.groups_are_the_best_three),
    ),
    Mutant(
        name="groups are cut at the widest gaps",
        patches=((squeeze, "_squares", widest_gap),),
        killed_by=(squeezing.groups_are_the_best_three,),
    ),
    Mutant(
        name="the residual stream is left out",
        patches=((CacheLayer, "_compare", without_residual),),
        killed_by=(partial(_SIMILARITY, "llama_gqa"),),
    ),
    Mutant(
        name="the bias is left out",
        patches=((CacheLayer, "_compare", without_bias),),
        killed_by=(partial(_SIMILARITY, "gpt2"),),
    ),
    Mutant(
        name="padding is compared",
        patches=((CacheLayer, "_compare", with_padding),),
        killed_by=(partial(_SIMILARITY, "llama_gqa"),),
    ),
    Mutant(
        name="the last piece of a prompt counts alone",
        patches=((CacheLayer, "_compare", latest_pass),),
        killed_by=(partial(_SIMILARITY, "llama_gqa", (7, 1, 13, 3)),),
    ),
    Mutant(
        name="nothing is given",
        patches=((Squeeze, "parts", given_twice),),
        killed_by=(squeezing.layers_give_as_the_paper_says, partial(squeezing.layers_hold_their_share, "llama_gqa")),
    ),
    Mutant(
        name="something is always given",
        patches=((Squeeze, "parts", a_little_less),),
        killed_by=(squeezing.a_share_of_one_is_h2o_bit_for_bit,),
    ),
    Mutant(
        name="hooks stay",
        patches=((Squeeze, "watch", for_good),),
        killed_by=(squeezing.nothing_stays_behind,),
    ),
)
