"""RotateKV: heads are turned together, and what comes of it is sorted, so that what shares a scale is alike."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvbench.cache.codecs.basis import Basis
from kvbench.cache.codecs.moments import places
from kvbench.cache.codecs.reordered import Reordered
from kvbench.cache.codecs.rotated import hadamard


@dataclass(frozen=True, kw_only=True)
class RotateKV(Reordered):
    """Keys of neighbouring heads, before rotation, times one Hadamard matrix, and sorted; values times one per head.

    Source: Su et al. (RotateKV), arXiv:2501.16383, sec. 4, and the authors' code, which sorts what was turned.
    Deviates: channels are sorted within a group of heads, along the main direction of what they were in text, where the
        authors sort those of all heads by their sum. Exact tokens are the first ones, not those that massive
        activations single out. A bias of the model's is taken off before. Entries are turned when they are written and
        back when they are read, where the authors fold this into weights.
    """

    def of_keys(self, moments: Tensor, heads: int) -> Basis:
        """Return the coordinates of keys without rotation; arguments as of `Reordered.of_keys`."""
        turn = hadamard(moments.shape[1])
        order = places(turn @ moments.double() @ turn).argsort(dim=1)  # the matrix is symmetric
        directions = turn.expand(len(order), -1, -1).gather(2, order[:, None].expand_as(moments))
        return Basis(directions.unflatten(1, (heads, -1)), None, None, None)

    def of_values(self, moments: Tensor, heads: int) -> Basis:
        """Return the rotation of each head of the values."""
        return Basis(hadamard(moments.shape[1] // heads)[None, None], None, None, None)
