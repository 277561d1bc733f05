"""TurboQuant: heads are rotated at random, so that their numbers are as normal ones, whatever they were before."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from kvbench.cache.codecs.rotated import Rotated


@dataclass(frozen=True, kw_only=True)
class TurboQuant(Rotated):
    """Each head of the keys, position included, and of the values is multiplied by a random orthogonal matrix.

    Source: Zandieh et al. (TurboQuant), arXiv:2504.19874, algorithm 1, with a latent whose levels are normal.
    Deviates: keys, too, are rounded for the least squared error; the form whose products with queries are unbiased, one
        bit of each less and the signs of what is left over, is not there, nor are channels with a bit more. Levels are
        those of a normal number, which one of a random direction only approaches as heads grow.

    Args:
        seed: of the matrix, which is the same in every layer.
    """

    seed: int

    def matrix(self, dim: int) -> Tensor:
        """Return what a head is multiplied by, orthonormal, in float64 [D, D]."""
        return random_rotation(dim, self.seed)


@cache
def random_rotation(size: int, seed: int) -> Tensor:
    """Return the rotation of a seed in float64 [size, size]."""
    return rotation(size, torch.Generator().manual_seed(seed))


def rotation(size: int, random: torch.Generator) -> Tensor:
    """Return an orthonormal matrix in float64, each as likely as any other [size, size]."""
    drawn = torch.randn(size, size, dtype=torch.float64, generator=random)
    found, triangle = torch.linalg.qr(drawn)
    turned: Tensor = found * triangle.diagonal().sign()  # with signs as they come some matrices would be likelier
    return turned
