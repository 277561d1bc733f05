"""QJL: of keys, the signs of random projections and a length are kept; products with queries are right on average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from kvbench.cache.codecs.base import Kept, Packing
from kvbench.cache.codecs.packed_keys import PackedKeys
from kvbench.cache.codecs.turboquant import rotation
from kvbench.kernels.packed import Kernel
from kvbench.kernels.packed.sketch import Sketch
from kvbench.kernels.packing import pack, packed_width
from kvbench.types import LayerShape, ModelView

LAYERS = 2**16  # more than a model has: seeds of layers do not meet


@dataclass(frozen=True, kw_only=True)
class QJL(PackedKeys):
    """A key is kept as signs of products with random directions and its length, its group's large channels apart.

    Directions are orthogonal to each other in blocks of as many as a key has channels; large channels are multiplied
    with the first half of them.

    Source: Zandieh et al. (QJL), arXiv:2406.03482, algorithm 1 and sec. 4.
    Deviates: products are divided by what an orthogonal direction gives on average, where the authors take that of
        normal numbers, which is 1 in 4 D less; lengths are of the two parts of a key, where the authors keep the key's
        and the large part's.

    Args:
        seed: of the directions, which differ by layer.
        bits: directions, for each channel of a key.
        first_bits: as bits, in the first layers.
        first_layers: how many layers these are.
        num_large: channels of a group of tokens that are kept apart: those with the largest norm.
        group: as in PackedKeys; tokens that share large channels.
        value_quantiser: as in PackedKeys.
        residual: as in PackedKeys.
    """

    seed: int
    bits: int
    first_bits: int
    first_layers: int
    num_large: int

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        super().__post_init__()
        if min(self.bits, self.first_bits, self.num_large) < 1 or self.first_layers < 0:
            raise ValueError(
                f"strategy.codec.bits, strategy.codec.first_bits and strategy.codec.num_large must be at least 1, and "
                f"strategy.codec.first_layers 0 or more; got {self.bits}, {self.first_bits}, {self.num_large} and "
                f"{self.first_layers}."
            )

    def keys(self, view: ModelView, layer: int) -> SketchPacking:
        """Return how the keys of a layer are packed."""
        return _packing(self, view, layer)

    def why_not(self, shape: LayerShape) -> str | None:
        """Return why the keys of a layer cannot be packed, or None."""
        if self.num_large < shape.key_dim <= 256:
            return None
        return (
            f"strategy/codec=qjl needs more channels of a key than strategy.codec.num_large={self.num_large}, and 256 "
            f"at most; this model has {shape.key_dim}"
        )


@lru_cache(maxsize=256)  # each layer holds its own
def _packing(rule: QJL, view: ModelView, layer: int) -> SketchPacking:
    dim = view.layers[layer].key_dim
    count = dim * (rule.first_bits if layer < rule.first_layers else rule.bits)
    random = torch.Generator().manual_seed(rule.seed * LAYERS + layer)
    drawn = torch.cat([rotation(dim, random) for _ in range(count // dim)]) * math.sqrt(dim)
    wide = torch.promote_types(view.dtype, torch.float32)
    return SketchPacking(rule=rule, directions=drawn.to(device=view.device_of(layer), dtype=wide))


@dataclass(frozen=True, kw_only=True, eq=False)
class SketchPacking(Packing):
    """How the keys of a layer are packed.

    Args:
        rule: of all layers.
        directions: each with D numbers [s, D].
    """

    rule: QJL
    directions: Tensor

    @property
    def tokens(self) -> int:
        """Tokens that are packed together."""
        return self.rule.group

    @property
    def half(self) -> int:
        """Directions that large channels are multiplied with."""
        return (len(self.directions) + 1) // 2

    def kept(self, dim: int) -> tuple[Kept, ...]:
        """Return what is kept of keys: signs of both parts, their lengths, and which channels are large."""
        return (
            Kept(tokens=1, width=packed_width(len(self.directions), 1), dtype=torch.uint8),
            Kept(tokens=1, width=packed_width(self.half, 1), dtype=torch.uint8),
            Kept(tokens=1, width=2, dtype=torch.float16),
            Kept(tokens=self.tokens, width=self.rule.num_large, dtype=torch.uint8),
        )

    def encode(self, entries: Tensor) -> tuple[Tensor, ...]:
        """Return what is kept of keys [B, G, T, D]."""
        groups = entries.float().unflatten(2, (-1, self.tokens))
        large = groups.norm(dim=3).topk(self.rule.num_large, dim=-1).indices
        is_large = torch.zeros_like(groups[:, :, :, 0], dtype=torch.bool).scatter_(-1, large, True)[:, :, :, None]
        signs, lengths = [], []
        for part, count in (
            (groups.masked_fill(is_large, 0.0), len(self.directions)),
            (groups.masked_fill(~is_large, 0.0), self.half),
        ):
            above = torch.matmul(part, self.directions[:count].float().mT) > 0
            signs.append(pack(above.to(torch.uint8).flatten(2, 3), 1))
            lengths.append(part.norm(dim=-1).flatten(2, 3).half())
        return (*signs, torch.stack(lengths, dim=-1), large.to(torch.uint8))

    def run(self, kept: Sequence[Tensor], dim: int, kernel: Kernel) -> Sketch:
        """Return keys as attention reads them, of what is kept."""
        signs, large_signs, lengths, large = kept
        return Sketch(signs, large_signs, lengths, large, self.directions, self.half)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the directions."""
        return (self.directions,)
