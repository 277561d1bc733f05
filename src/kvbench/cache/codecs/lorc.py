"""LoRC: entries along the main directions of the weights that make them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.cache.codecs.basis import Basis
from kvbench.cache.codecs.projected import Projected
from kvbench.types import ModelView, Projection

ROUNDED_TO = 8  # ranks are multiples of this
LEAST_SINGULAR = 1e-6  # of the largest singular value; smaller ones count as this


@dataclass(frozen=True, kw_only=True)
class LowRank(Projected):
    """Keys and values lie in the column space of the weights that make them, cut to the directions that matter most.

    Layers differ: one is cut the more, the smaller the product of its weights' condition numbers and those of all
    layers after it, which the layers' errors are amplified by.

    Args:
        most: share of the full rank that the layer with the largest product keeps.
        least: share that the one with the smallest keeps.
    """

    joins_heads: ClassVar[bool] = True

    most: float
    least: float

    def __post_init__(self) -> None:
        """Refuse shares and latents that cannot be."""
        super().__post_init__()
        if not 0 < self.least <= self.most <= 1:
            raise ValueError(
                f"strategy.codec.least must be above 0, at most strategy.codec.most, and that at most 1; got "
                f"{self.least} and {self.most}."
            )

    def bases(self, view: ModelView, layer: int) -> tuple[Basis, Basis]:
        """Return the directions of the keys and of the values of a layer."""
        rank, shape = ranks(view, self.most, self.least)[layer], view.layers[layer]
        assert shape.key_projection is not None
        assert shape.value_projection is not None
        keys, values = _basis(shape.key_projection, rank), _basis(shape.value_projection, rank)
        return replace(keys, rotary=shape.rotary), values

    def unsupported(self, view: ModelView) -> str | None:
        """Return why the weights behind keys and values are not known, or None."""
        for index, shape in enumerate(view.layers):
            if shape.key_projection is None or shape.value_projection is None:
                return (
                    f"strategy/codec=lorc needs keys and values that are a projection of hidden states, and those of "
                    f"layer {index} are not, or it was not found; use another strategy/codec"
                )
            if shape.key_projection.weight.is_meta:
                return None  # the model is not loaded
        return super().unsupported(view)


@lru_cache(maxsize=4)
def ranks(view: ModelView, most: float, least: float) -> tuple[int, ...]:
    """Return the rank of every layer, a multiple of `ROUNDED_TO`.

    Args:
        view: of the model.
        most: share of the full rank that the layer with the largest product of condition numbers keeps.
        least: share that the one with the smallest keeps.
    """
    logs = [
        sum(_log_condition(made.weight) for made in (shape.key_projection, shape.value_projection) if made is not None)
        for shape in view.layers
    ]
    products = [sum(logs[layer:]) for layer in range(len(logs))]
    width = max(products) - min(products)
    out = []
    for shape, product in zip(view.layers, products, strict=True):
        full = shape.kv_heads * shape.key_dim
        share = most - (max(products) - product) / width * (most - least) if width > 0 else most
        out.append(min(full, max(1, round(full * share / ROUNDED_TO)) * ROUNDED_TO))
    return tuple(out)


def _log_condition(weight: Tensor) -> float:
    if weight.is_meta:
        return 0.0
    squares = torch.linalg.eigvalsh(_gram(weight)).clamp(min=0)
    return math.log(1 / max(LEAST_SINGULAR, float(squares[0] / squares[-1]) ** 0.5))


@lru_cache(maxsize=512)  # two of each layer
def _basis(made: Projection, rank: int) -> Basis:
    weight = made.weight
    if weight.is_meta:
        return Basis(weight.new_empty((1, *weight.shape[:2], rank)), None, made.bias, None)
    directions = torch.linalg.eigh(_gram(weight)).eigenvectors.flip(1)[:, :rank]
    kept = torch.empty_like(directions, dtype=torch.promote_types(weight.dtype, torch.float32)).copy_(directions)
    return Basis(kept.unflatten(0, (1, *weight.shape[:2])), None, made.bias, None)


def _gram(weight: Tensor) -> Tensor:
    flat = weight.flatten(0, 1).double()
    return flat @ flat.t()
