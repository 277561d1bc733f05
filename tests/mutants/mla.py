"""Latents with one thing wrong each."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from kvbench.cache import slots
from kvbench.cache.codecs.same import Same
from kvbench.models import latent
from kvbench.strategies.transform import mla as part
from kvbench.strategies.transform.mla import Mla
from kvbench.types import LayerShape, ModelView
from tests.mutants.core_mutant import Mutant
from tests.support import mla

loudest, linear, dims, turned = part.loudest, part._linear, Mla.dims, latent._turned


def quietest(query: Tensor, key: Tensor, half: int, count: int) -> Tensor:
    """Choose pairs by the smallest norms."""
    return loudest(1 / query, 1 / key, half, count)


def cut(self: Mla, layer: LayerShape) -> tuple[int, int]:
    """Cut a rank that shall be full."""
    width, rotated = dims(self, layer)
    return width - 1, rotated


def without_bias(rows: Tensor, like: Tensor) -> nn.Linear:
    """Forget biases."""
    return linear(rows * (torch.arange(rows.shape[1]) < rows.shape[1] - 1), like)


def backwards(rows: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Swap the halves of pairs."""
    return turned(rows.flip(-1), cosine, sine)


class _Copied(Same):
    """Values with room of their own."""

    def tensors(self) -> tuple[Tensor, ...]:
        """Return a copy of them."""
        return (self.read(self.capacity).clone(),)


def one_later(self: Same, stop: int, position: Tensor) -> Tensor:
    """Read the values of other tokens."""
    return self.keys.read(stop, position).roll(1, dims=2)


def of_the_model(self: Mla, view: ModelView) -> ModelView:
    """Say that every head has keys and values."""
    return view


MUTANTS = (
    Mutant(
        name="other pairs stay rotated",
        patches=((part, "loudest", quietest),),
        killed_by=(partial(mla.absorbed_equals_expanded, "llama_gqa", 0.5, 1),),
    ),
    Mutant(
        name="the rank is cut",
        patches=((Mla, "dims", cut),),
        killed_by=(
            partial(mla.full_rank_with_all_rotation_is_the_model, "llama_gqa"),
            partial(mla.full_rank_with_all_rotation_is_the_model, "gpt2"),
        ),
    ),
    Mutant(
        name="biases are forgotten",
        patches=((part, "_linear", without_bias),),
        killed_by=(partial(mla.full_rank_with_all_rotation_is_the_model, "gpt2"),),
    ),
    Mutant(
        name="pairs are turned the other way",
        patches=((latent, "_turned", backwards),),
        killed_by=(partial(mla.full_rank_with_all_rotation_is_the_model, "phi3"),),
    ),
    Mutant(
        name="values are held again",
        patches=((slots, "Same", _Copied),),
        killed_by=(partial(mla.bytes_are_one_latent_and_its_rotation, "llama_gqa"),),
    ),
    Mutant(
        name="values are read elsewhere",
        patches=((Same, "entries", one_later),),
        killed_by=(
            partial(mla.latents_go_with_selection, "llama_gqa"),
            partial(mla.latents_go_with_codecs, "llama_gqa"),
        ),
    ),
    Mutant(
        name="shapes are those of before",
        patches=((Mla, "shapes", of_the_model),),
        killed_by=(partial(mla.shapes_are_known_before, "llama_gqa"),),
    ),
)
