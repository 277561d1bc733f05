"""SKVQ: channels in another order, so that those that share a scale are alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from kvbench.cache.codecs.basis import Basis
from kvbench.cache.codecs.moments import blocks, find, joined, places, refuse_groups
from kvbench.cache.codecs.projected import Measured
from kvbench.types import ModelView


@dataclass(frozen=True, kw_only=True)
class Reordered(Measured):
    """Channels of neighbouring heads are sorted by what they are in text; keys as they were before rotation.

    Source: Duanmu et al. (SKVQ), arXiv:2405.06219, sec. 3: channels reordered, clipped rounding, a window of exact
        tokens and exact first ones.
    Deviates: channels are sorted along the main direction of what they were in text, the groups that share a scale are
        neighbours in that order, and of one size; the authors find clusters of least and largest numbers by k-means.
        Groups lie within `heads` neighbouring heads. A bias of the model's is taken off before. Keys are restored and
        rotated a few at a time.

    Args:
        heads: neighbouring ones that are sorted together, at most.
        moments: as in Measured.
    """

    heads: int

    def __post_init__(self) -> None:
        """Refuse groups and latents that cannot be."""
        super().__post_init__()
        refuse_groups(self.heads)

    @property
    def joins_heads(self) -> bool:
        """Whether heads of a token share coordinates."""
        return self.heads > 1

    def bases(self, view: ModelView, layer: int) -> tuple[Basis, Basis]:
        """Return the coordinates of the keys and of the values of a layer."""
        return _bases(view, self)[layer]

    def of_keys(self, moments: Tensor, heads: int) -> Basis:
        """Return the coordinates of keys without rotation.

        Args:
            moments: of groups of heads [n, h x D, h x D].
            heads: of a group.
        """
        return Basis(None, None, None, None, places(moments).unflatten(1, (heads, -1)))

    def of_values(self, moments: Tensor, heads: int) -> Basis:
        """Return the coordinates of values; arguments as of `of_keys`."""
        return Reordered.of_keys(self, moments, heads)


@lru_cache(maxsize=4)
def _bases(view: ModelView, rule: Reordered) -> tuple[tuple[Basis, Basis], ...]:
    found, made = find(rule.moments, view), []
    for layer, shape in enumerate(view.layers):
        heads, sides = joined(shape, rule.heads), []
        for name, dim, projection, rotary in (
            ("keys", shape.key_dim, shape.key_projection, shape.rotary),
            ("values", shape.value_dim, shape.value_projection, None),
        ):
            size = heads * dim
            moments = (
                torch.eye(size).expand(shape.kv_heads // heads, -1, -1)
                if found is None
                else blocks(getattr(found, name)[layer], size)
            )
            basis = (rule.of_keys if name == "keys" else rule.of_values)(moments, heads)
            bias = None if projection is None else projection.bias
            sides.append(replace(basis.on(view, layer), bias=bias, rotary=rotary))
        made.append((sides[0], sides[1]))
    return tuple(made)
