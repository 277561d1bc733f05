"""Eigen Attention: heads along the directions that keys and queries share, and along those of values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.cache.codecs.basis import Basis
from kvbench.cache.codecs.moments import Moments, blocks, find, main_directions
from kvbench.cache.codecs.palu import allotted, bias_of
from kvbench.cache.codecs.projected import Measured
from kvbench.types import ModelView


@dataclass(frozen=True, kw_only=True)
class EigenAttention(Measured):
    """Each head of the keys, cut to the main directions of keys and queries together, and of the values, to their own.

    A direction that keys lie along and queries do not changes no logit, so those that both lie along are worth most.

    Source: Saxena et al. (Eigen Attention), arXiv:2408.05646: shared directions of keys and queries, directions of
        values, heads of a layer that keep as many, ranks by the share of the squares.
    Deviates: the network stays as it is and a prompt is read with full weights; one share of the squares holds for
        all layers, the largest that leaves `kept` directions, where the paper lowers a layer's until its output is off
        by an error budget; keys that are rotated have directions of each head, of queries too, where the authors' code
        takes one of all heads' keys alone. These keys are rotated a few at a time.

    Args:
        kept: share of all directions that is kept, over all layers.
        moments: as in Measured.
    """

    joins_heads: ClassVar[bool] = False

    kept: float

    def __post_init__(self) -> None:
        """Refuse shares and latents that cannot be."""
        super().__post_init__()
        if not 0 < self.kept <= 1:
            raise ValueError(f"strategy.codec.kept must be above 0 and at most 1; got {self.kept}.")

    def bases(self, view: ModelView, layer: int) -> tuple[Basis, Basis]:
        """Return the directions of the keys and of the values of a layer."""
        return _bases(view, self)[layer]


@lru_cache(maxsize=4)
def _bases(view: ModelView, rule: EigenAttention) -> tuple[tuple[Basis, Basis], ...]:
    found = find(rule.moments, view)
    sides = [(shape.kv_heads, dim) for shape in view.layers for dim in (shape.key_dim, shape.value_dim)]
    sizes = [dim for _, dim in sides]
    total = round(rule.kept * sum(sizes))
    if found is None:
        ranks = allotted(sizes, sizes, total)
        made = [torch.empty(heads, dim, rank) for (heads, dim), rank in zip(sides, ranks, strict=True)]
    else:
        squares, directions = zip(*(main_directions(each) for each in _moments(found, sizes)), strict=True)
        ranks = of_one_share(squares, total)
        made = [every[..., :rank] for every, rank in zip(directions, ranks, strict=True)]
    kept = [each[:, None] for each in made]
    return tuple(
        (
            Basis(keys, None, bias_of(shape.key_projection), shape.rotary).on(view, layer),
            Basis(values, None, bias_of(shape.value_projection), None).on(view, layer),
        )
        for layer, (shape, keys, values) in enumerate(zip(view.layers, kept[::2], kept[1::2], strict=True))
    )


def _moments(found: Moments, sizes: Sequence[int]) -> Iterator[Tensor]:
    """Yield the moments of each side, keys before values, layer by layer [G, D, D]."""
    for layer, queries in enumerate(found.queries):
        yield blocks(found.keys[layer], sizes[2 * layer]) + queries
        yield blocks(found.values[layer], sizes[2 * layer + 1])


def of_one_share(spectra: Sequence[Tensor], total: int) -> list[int]:
    """Return how many directions each side keeps, so many in all, such that the least share of squares is largest.

    One by one they go to the side of which a head keeps the least.

    Args:
        spectra: squares along directions, largest first [G, D].
        total: of directions that a head of every side keeps; each keeps 1 at least.
    """
    shares = [(each.cumsum(dim=1) / each.sum(dim=1, keepdim=True)).amin(dim=0).tolist() for each in spectra]
    out = [1] * len(shares)
    for _ in range(total - len(out)):
        open_ones = [at for at, given in enumerate(out) if given < len(shares[at])]
        out[min(open_ones, key=lambda at: shares[at][out[at] - 1])] += 1
    return out
