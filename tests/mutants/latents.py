"""Coordinates with one thing wrong each."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.codecs import latent, lorc
from kvbench.cache.codecs.basis import Basis
from kvbench.cache.codecs.latent import Latent, LatentPayload
from kvbench.types import Projection
from tests.mutants.core_mutant import Mutant
from tests.support import latents

halves, turns = latent._halves, latent._turns
basis, coordinates, weighted, ranks = (
    lorc._basis,
    LatentPayload._coordinates,
    Latent.weighted,
    lorc.ranks,
)


def least_first(made: Projection, rank: int) -> Basis:
    """Take the directions that matter least."""
    full = basis(made, made.weight.flatten(0, 1).shape[0])
    assert full.directions is not None
    return replace(full, directions=full.directions[..., -rank:])


def one_short(made: Projection, rank: int) -> Basis:
    """Lose the direction that matters most."""
    found = basis(made, rank)
    assert found.directions is not None
    return replace(found, directions=torch.cat([found.directions[..., 1:], 0 * found.directions[..., :1]], dim=-1))


def still_rotated(self: LatentPayload, entries: Tensor, position: Any) -> Tensor:
    """Project keys as the model rotated them."""
    return coordinates(self, entries, 0)


def one_late(position: Tensor, rotary: Tensor, like: Tensor) -> Tensor:
    """Rotate keys to where their neighbours are."""
    return turns(position + 1, rotary, like)


def without_bias(self: Latent, weights: Tensor) -> Tensor:
    """Forget what was added to the values."""
    return weighted(replace(self, basis=replace(self.basis, bias=None)), weights)


def bias_twice(self: LatentPayload, entries: Tensor, position: Any) -> Tensor:
    """Project the bias as well."""
    bias = self.how.basis.bias
    return coordinates(self, entries if bias is None else entries + bias[:, None], position)


def shallow_first(view: Any, most: float, least: float) -> tuple[int, ...]:
    """Cut the first layers most."""
    return ranks(view, most, least)[::-1]


def own_condition(view: Any, most: float, least: float) -> tuple[int, ...]:
    """Look at each layer alone."""
    return tuple(ranks(replace(view, layers=(shape,)), most, least)[0] for shape in view.layers)


def everything_restored(self: Latent, rows: Tensor, out: Tensor) -> None:
    """Restore all keys at once."""
    out.copy_(torch.matmul(rows, self.dense(0, self.length, rows.dtype).transpose(-1, -2)))


def turned_back(rows: Tensor, half: int) -> Tensor:
    """Turn keys the other way."""
    out = halves(rows, half).clone()
    out[..., half : 2 * half, :].neg_()
    return out


def without_the_rest(rows: Tensor, half: int) -> Tensor:
    """Leave out the channels that are not rotated."""
    return halves(rows, half)[..., : 2 * half, :]


def the_first_heads(position: Tensor, rotary: Tensor, like: Tensor) -> Tensor:
    """Turn the keys of all heads as those of the first."""
    return turns(position[:, :1], rotary, like)


_FULL, _GOING = latents.a_full_rank_is_the_baseline, latents.going_to_the_coordinates_is_restoring

MUTANTS = (
    Mutant(
        name="the least directions are kept",
        patches=((lorc, "_basis", least_first),),
        killed_by=(partial(latents.coordinates_lose_no_more_than_the_next_singular_value, "gpt2"),),
    ),
    Mutant(
        name="a direction is forgotten whatever the rank",
        patches=((lorc, "_basis", one_short),),
        killed_by=(partial(latents.errors_fall_with_the_rank, "llama_gqa"), partial(_FULL, "lorc", "llama_mha")),
    ),
    Mutant(
        name="keys are projected with their rotation",
        patches=((LatentPayload, "_coordinates", still_rotated),),
        killed_by=(partial(_FULL, "lorc", "llama_gqa"),),
    ),
    Mutant(
        name="keys are rotated to their neighbours' places",
        patches=((latent, "_turns", one_late),),
        killed_by=(partial(_FULL, "lorc", "llama_mha"),),
    ),
    Mutant(
        name="the bias of values is forgotten",
        patches=((Latent, "weighted", without_bias),),
        killed_by=(partial(_FULL, "lorc_fp16", "gpt2"), partial(_GOING, "gpt2")),
    ),
    Mutant(
        name="the bias is projected",
        patches=((LatentPayload, "_coordinates", bias_twice),),
        killed_by=(partial(_FULL, "lorc", "gpt2"),),
    ),
    Mutant(
        name="shallow layers are cut most",
        patches=((latents, "ranks", shallow_first),),
        killed_by=(latents.ranks_follow_the_paper,),
    ),
    Mutant(
        name="layers are looked at alone",
        patches=((latents, "ranks", own_condition),),
        killed_by=(latents.ranks_follow_the_paper,),
    ),
    Mutant(
        name="keys are turned the other way",
        patches=((latent, "_halves", turned_back),),
        killed_by=(partial(latents.queries_turn_as_keys_do, 8), partial(_FULL, "lorc", "llama_mha")),
    ),
    Mutant(
        name="channels that are not rotated are left out",
        patches=((latent, "_halves", without_the_rest),),
        killed_by=(partial(latents.queries_turn_as_keys_do, 6),),
    ),
    Mutant(
        name="all heads are turned as the first",
        patches=((latent, "_turns", the_first_heads),),
        killed_by=(partial(latents.queries_turn_as_keys_do, 8),),
    ),
    Mutant(
        name="all keys are restored at once",
        patches=((Latent, "logits", everything_restored),),
        killed_by=(latents.a_step_needs_little_room,),
    ),
)
