"""PolarQuant: channels that are rotated together are kept as a radius and an angle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.cache.codecs.base import Kept, Packing
from kvbench.cache.codecs.packed_keys import PackedKeys
from kvbench.kernels.packed import Kernel
from kvbench.kernels.packed.polar import Polar, pairs
from kvbench.kernels.packing import PLANES, pack, packed_width
from kvbench.types import LayerShape, ModelView

TURN = 2 * math.pi
_WHOLE = sorted(PLANES.keys() - {1, 16})


@dataclass(frozen=True, kw_only=True)
class PolarQuant(PackedKeys):
    """Radii and angles of a group of tokens are rounded, and the score of each angle is computed once per group.

    Source: Wu et al. (PolarQuant), NeurIPS 2025, arXiv:2502.00527.
    Deviates: the angles of a group begin behind their widest gap, where the authors' begin at 0, so that a group around
        0 does not take the whole turn; channels that are not rotated are paired in the same way among themselves.

    Args:
        radius_bits: of a pair of channels.
        angle_bits: of a pair; with the radius's 2, 3, 4 or 8.
        group: as in PackedKeys; tokens whose radii, and angles, share a scale.
        value_quantiser: as in PackedKeys.
        residual: as in PackedKeys.
    """

    radius_bits: int
    angle_bits: int

    def __post_init__(self) -> None:
        """Refuse codes that mean nothing."""
        super().__post_init__()
        if min(self.radius_bits, self.angle_bits) < 1 or self.radius_bits + self.angle_bits not in _WHOLE:
            raise ValueError(
                f"strategy.codec.radius_bits and strategy.codec.angle_bits must be at least 1, and together one of "
                f"{_WHOLE}; got {self.radius_bits} and {self.angle_bits}."
            )

    def keys(self, view: ModelView, layer: int) -> PolarPacking:
        """Return how the keys of a layer are packed."""
        shape = view.layers[layer]
        return PolarPacking(rule=self, half=shape.key_dim // 2 if shape.rotary is None else len(shape.rotary))

    def why_not(self, shape: LayerShape) -> str | None:
        """Return why the keys of a layer cannot be packed, or None."""
        if shape.key_dim % 2 == 0:
            return None
        return f"strategy/codec=polarquant pairs channels, and keys of this model have {shape.key_dim}; use kivi4"


@dataclass(frozen=True, kw_only=True)
class PolarPacking(Packing):
    """How the keys of a layer are packed.

    Args:
        rule: of all layers.
        half: as in kernels.packed.polar.Polar.
    """

    rule: PolarQuant
    half: int

    @property
    def tokens(self) -> int:
        """Tokens that are packed together."""
        return self.rule.group

    def kept(self, dim: int) -> tuple[Kept, ...]:
        """Return what is kept of keys with so many numbers: codes, and where they begin and their steps."""
        bits = self.rule.radius_bits + self.rule.angle_bits
        return (
            Kept(tokens=1, width=packed_width(dim // 2, bits), dtype=torch.uint8),
            Kept(tokens=self.tokens, width=4 * (dim // 2), dtype=torch.float16),
        )

    def encode(self, entries: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is kept of keys [B, G, T, D]."""
        rule = self.rule
        x, y = pairs(entries.float(), self.half).unflatten(2, (-1, self.tokens)).unbind(dim=-2)
        length, angle = torch.hypot(x, y), torch.atan2(y, x)
        low, first = length.amin(dim=3), _behind_the_widest_gap(angle)
        beyond = (angle - first.unsqueeze(3)) % TURN
        kept, codes = [], []
        for begin, numbers, bits in (
            (low, length - low.unsqueeze(3), rule.radius_bits),
            (first, beyond, rule.angle_bits),
        ):
            start, step = begin.half(), (numbers.amax(dim=3) / 2**bits).half()
            numbers = numbers + (begin - start.float()).unsqueeze(3)  # as far as they are from what is kept
            steps = numbers / torch.where(step == 0, 1.0, step.float()).unsqueeze(3)
            codes.append(steps.floor().clamp(0, 2**bits - 1).to(torch.uint8))
            kept += [start, step]
        radius, turn = codes
        return pack((radius << rule.angle_bits | turn).flatten(2, 3), rule.radius_bits + rule.angle_bits), torch.cat(
            kept, dim=-1
        )

    def run(self, kept: Sequence[Tensor], dim: int, kernel: Kernel) -> Polar:
        """Return keys as attention reads them, of what is kept."""
        codes, scales = kept
        return Polar(codes, scales, self.rule.radius_bits, self.rule.angle_bits, self.half)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return nothing: keys are packed with constants."""
        return ()


def _behind_the_widest_gap(angle: Tensor) -> Tensor:
    """Return where the smallest arc begins that holds the angles of each group [B, G, M, tokens, P]."""
    ordered = angle.sort(dim=3).values
    gaps = (ordered - ordered.roll(1, dims=3)) % TURN  # before each angle
    return ordered.gather(3, gaps.argmax(dim=3, keepdim=True)).squeeze(3)
