"""Moments, directions and scales with one thing wrong each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.codecs import palu as rules
from kvbench.cache.codecs import smoothed
from kvbench.cache.codecs.moments import Moments, blocks
from kvbench.cache.codecs.rotated import hadamard
from kvbench.calibration import moments as measures
from kvbench.types import LayerShape, ModelView, Projection
from tests.mutants.core_mutant import Mutant
from tests.support import moments, palu
from tests.support.latents import network

bases, allotted = rules._bases.__wrapped__, rules.allotted
products, grad, measured = measures._products, torch.autograd.grad, measures.moments


def least_first(view: ModelView, rule: Any) -> Any:
    """Take the directions along which least lies."""
    full, cut = bases(view, replace(rule, kept=1.0)), bases(view, rule)

    def last(whole: Any, part: Any) -> Any:
        return replace(part, directions=whole.directions @ hadamard(whole.rank)[:, -part.rank :].to(view.dtype))

    return tuple(tuple(map(last, *sides)) for sides in zip(full, cut, strict=True))


def with_bias(entries: Tensor, made: Projection | None, groups: int) -> Tensor:
    """Measure the bias as well."""
    return products(entries, None, groups)


def still_rotated(keys: Tensor, position: Any, rotary: Any) -> Tensor:
    """Measure keys as the model rotated them."""
    return keys


def half_a_gradient(*args: Any) -> Any:
    """Take half of every gradient."""
    return [each / 2 for each in grad(*args)]


def first_block(found: Tensor, size: int) -> Tensor:
    """Take the first group's moments for every group."""
    made = blocks(found, size)
    return made[:1].expand_as(made)


def all_alike(weights: Any, most: Any, total: int) -> list[int]:
    """Give every side the same."""
    return allotted([1.0] * len(most), most, total)


def not_turned(size: int) -> Tensor:
    """Leave the directions as they are."""
    return torch.eye(size, dtype=torch.float64)


def each_channel_alone(largest: Tensor, shape: LayerShape) -> Tensor:
    """Let channels that are rotated into each other differ."""
    return largest


def as_the_weights_say(
    found: Any, name: str, layer: int, size: int, rank: int, shape: LayerShape, heads: int
) -> Tensor:
    """Take the main directions of the weights."""
    made = shape.key_projection if name == "keys" else shape.value_projection
    assert made is not None
    left = torch.linalg.svd(made.weight.flatten(0, 1).float(), full_matrices=False)[0][:, :rank]
    turned: Tensor = (left.double() @ hadamard(rank)).unflatten(0, (1, heads, -1))
    return turned


@classmethod  # type: ignore[misc]
def sides_changed(cls: Any, read: dict[str, Any]) -> Moments:
    """Take the values for the keys."""
    made: Moments = parsed(cls, read)
    return replace(made, keys=made.values, values=made.keys)


def first_forgotten(*args: Any) -> Tensor:
    """Forget a direction."""
    made = directions(*args)
    return torch.cat([torch.zeros_like(made[..., :1]), made[..., 1:]], dim=-1)


parsed, directions = Moments.parsed.__func__, rules._directions  # type: ignore[attr-defined]

MUTANTS = (
    Mutant(
        name="the least directions are kept",
        patches=((rules, "_bases", least_first),),
        killed_by=(partial(palu.directions_are_those_of_the_whitened_weights, "llama_gqa"),),
    ),
    Mutant(
        name="a direction is forgotten whatever the rank",
        patches=((rules, "_directions", first_forgotten), (rules, "_bases", bases)),
        killed_by=(partial(palu.errors_fall_with_the_directions_kept, "llama_mha"),),
    ),
    Mutant(
        name="directions are those of the weights",
        patches=((rules, "_directions", as_the_weights_say), (rules, "_bases", bases)),
        killed_by=(palu.whitening_loses_less, partial(palu.directions_are_those_of_the_whitened_weights, "gpt2")),
    ),
    Mutant(
        name="the bias is measured",
        patches=((measures, "_products", with_bias),),
        killed_by=(partial(moments.moments_are_those_of_the_numbers, network("gpt2")),),
    ),
    Mutant(
        name="keys are measured with their rotation",
        patches=((measures, "turned_back", still_rotated),),
        killed_by=(partial(moments.moments_are_those_of_the_numbers, network("llama_gqa")),),
    ),
    Mutant(
        name="query heads of a KV head add up",
        patches=((Tensor, "mean", Tensor.sum),),
        killed_by=(partial(moments.moments_are_those_of_the_numbers, network("llama_gqa")),),
    ),
    Mutant(
        name="gradients are halved",
        patches=((torch.autograd, "grad", half_a_gradient),),
        killed_by=(partial(moments.gradients_are_those_of_nudges, network("gpt2")),),
    ),
    Mutant(
        name="keys and values change places in the file",
        patches=((Moments, "parsed", sides_changed),),
        killed_by=(moments.moments_are_kept_as_they_are,),
    ),
    Mutant(
        name="all groups have the directions of the first",
        patches=((rules, "blocks", first_block), (rules, "_bases", bases)),
        killed_by=(palu.groups_have_their_own_directions,),
    ),
    Mutant(
        name="all sides keep the same",
        patches=((rules, "allotted", all_alike), (rules, "_bases", bases)),
        killed_by=(palu.shares_follow_the_gradients,),
    ),
    Mutant(
        name="directions are not turned",
        patches=((rules, "hadamard", not_turned), (rules, "_bases", bases)),
        killed_by=(palu.turned_directions_are_about_as_large,),
    ),
    Mutant(
        name="channels that are rotated into each other are scaled alone",
        patches=((smoothed, "of_pairs", each_channel_alone), (smoothed, "_scales", smoothed._scales.__wrapped__)),
        killed_by=(partial(palu.smoothing_keys_is_folding_scales_into_weights, "llama_mha"),),
    ),
)
