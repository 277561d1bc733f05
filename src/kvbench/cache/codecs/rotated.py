"""QuaRot: heads are rotated so that no channel stands out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.cache.codecs.basis import Basis
from kvbench.cache.codecs.projected import Projected
from kvbench.types import ModelView


@dataclass(frozen=True, kw_only=True)
class Rotated(Projected):
    """Each head of the keys, position included, and of the values is multiplied by a Hadamard matrix.

    Source: Ashkboos et al. (QuaRot), arXiv:2404.00456, sec. 4.2 and 4.3, of what is cached.
    Deviates: weights and activations stay as they are. Values are rotated when they are written and outputs when they
        are read, where the paper folds both into weights: the same numbers, two small products more.
    """

    joins_heads: ClassVar[bool] = False

    def bases(self, view: ModelView, layer: int) -> tuple[Basis, Basis]:
        """Return the rotation of a layer's heads."""
        return _bases(self, view, layer)

    def matrix(self, dim: int) -> Tensor:
        """Return what a head is multiplied by, orthonormal, in float64 [D, D]."""
        return hadamard(dim)


@lru_cache(maxsize=256)  # each layer holds its own
def _bases(rule: Rotated, view: ModelView, layer: int) -> tuple[Basis, Basis]:
    shape = view.layers[layer]
    keys = _rotation(rule.matrix(shape.key_dim), view, layer)
    return keys, keys if shape.value_dim == shape.key_dim else _rotation(rule.matrix(shape.value_dim), view, layer)


def _rotation(matrix: Tensor, view: ModelView, layer: int) -> Basis:
    return Basis(matrix[None, None], None, None, None).on(view, layer)


def hadamard(size: int) -> Tensor:
    """Return an orthonormal matrix in float64 whose numbers are about equally large [size, size].

    Hadamard's by Sylvester's rule, for powers of two; an odd factor of the size is made up for by Hartley's transform,
    cos + sin of the angles of Fourier's.
    """
    odd, signs = size, torch.ones(1, 1, dtype=torch.float64)
    while odd % 2 == 0:
        signs = torch.cat([torch.cat([signs, signs], dim=1), torch.cat([signs, -signs], dim=1)])
        odd //= 2
    at = torch.arange(odd, dtype=torch.float64)
    angle = 2 * math.pi / odd * (at[:, None] * at % odd)
    return torch.kron(signs, angle.cos() + angle.sin()) / math.sqrt(size)
