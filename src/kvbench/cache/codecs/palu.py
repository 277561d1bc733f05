"""Palu: groups of heads along the directions that their own numbers lie along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from kvbench.cache.codecs.basis import Basis
from kvbench.cache.codecs.lorc import ROUNDED_TO
from kvbench.cache.codecs.moments import Moments, blocks, find, joined, main_directions, refuse_groups
from kvbench.cache.codecs.projected import Measured
from kvbench.cache.codecs.rotated import hadamard
from kvbench.types import LayerShape, ModelView, Projection


@dataclass(frozen=True, kw_only=True)
class Palu(Measured):
    """Keys and values of neighbouring heads, cut to the directions along which they are largest, and turned.

    For inputs X and weights W the products XW change least, of all changes that leave W rank r, where W is cut to the r
    main directions of XW itself: those of its second moments. That is what the paper's whitening comes to.

    Source: Chang et al. (Palu), arXiv:2407.21118, sec. 3.1 to 3.4: groups of heads, whitening, ranks in proportion to
        Fisher information, latents turned by a Hadamard matrix before they are quantised.
    Deviates: the network stays as it is and a prompt is read with full weights; the groups of a layer share a rank;
        Fisher information is that of keys and values, not of the weights behind them; ranks are multiples of 8, where
        the paper's are of 32; keys are rotated a few at a time.

    Args:
        heads: of a group, at most; they share coordinates.
        kept: share of all directions that is kept, over all layers.
        ranks: whether each side of a layer keeps as many as its share of squared gradients, "fisher", or "uniform".
        moments: as in Measured.
    """

    heads: int
    kept: float
    ranks: Literal["fisher", "uniform"]

    def __post_init__(self) -> None:
        """Refuse groups, shares and latents that cannot be."""
        super().__post_init__()
        refuse_groups(self.heads)
        if not 0 < self.kept <= 1:
            raise ValueError(f"strategy.codec.kept must be above 0 and at most 1; got {self.kept}.")
        if self.ranks not in ("fisher", "uniform"):
            raise ValueError(f"strategy.codec.ranks must be fisher or uniform; got {self.ranks!r}.")

    @property
    def joins_heads(self) -> bool:
        """Whether heads of a token share coordinates."""
        return self.heads > 1

    def bases(self, view: ModelView, layer: int) -> tuple[Basis, Basis]:
        """Return the directions of the keys and of the values of a layer."""
        return _bases(view, self)[layer]


@lru_cache(maxsize=4)
def _bases(view: ModelView, rule: Palu) -> tuple[tuple[Basis, Basis], ...]:
    found = find(rule.moments, view)
    sizes = [joined(shape, rule.heads) * dim for shape in view.layers for dim in (shape.key_dim, shape.value_dim)]
    weights: Sequence[float] = sizes
    if found is not None and rule.ranks == "fisher":
        weights = [float(side) for layer in found.gradients for side in layer]
    units = allotted(weights, [-(-size // ROUNDED_TO) for size in sizes], round(rule.kept * sum(sizes) / ROUNDED_TO))
    kept = [min(size, given * ROUNDED_TO) for size, given in zip(sizes, units, strict=True)]
    made = []
    for layer, shape in enumerate(view.layers):
        ranks = kept[2 * layer : 2 * layer + 2]
        keys, values = (
            _directions(found, name, layer, size, rank, shape, joined(shape, rule.heads))
            for name, size, rank in zip(("keys", "values"), sizes[2 * layer :], ranks, strict=False)
        )
        made.append(
            (
                Basis(keys, None, bias_of(shape.key_projection), shape.rotary).on(view, layer),
                Basis(values, None, bias_of(shape.value_projection), None).on(view, layer),
            )
        )
    return tuple(made)


def _directions(
    found: Moments | None, name: str, layer: int, size: int, rank: int, shape: LayerShape, heads: int
) -> Tensor:
    if found is None:
        return torch.empty(shape.kv_heads // heads, heads, size // heads, rank)
    main = main_directions(blocks(getattr(found, name)[layer], size))[1][..., :rank]
    turned: Tensor = (main @ hadamard(rank)).unflatten(1, (heads, -1))
    return turned


def bias_of(made: Projection | None) -> Tensor | None:
    """Return what was added to entries before they were cached [G, D], or None."""
    return None if made is None else made.bias


def allotted(weights: Sequence[float], most: Sequence[int], total: int) -> list[int]:
    """Return whole numbers in proportion to weights that add up to a total: at least 1, and each at most its own most.

    One by one they go to the largest weight over twice what it has, and one (Webster's method).
    """
    out = [1] * len(weights)
    for _ in range(total - len(out)):
        open_ones = [at for at, given in enumerate(out) if given < most[at]]
        out[max(open_ones, key=lambda at: weights[at] / (2 * out[at] + 1))] += 1
    return out
