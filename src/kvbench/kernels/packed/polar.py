"""Keys as radii and angles of pairs of channels: products with queries are looked up, in plain torch on any device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.kernels.packed.grouped import GroupedKeys
from kvbench.kernels.packing import unpack


@dataclass(frozen=True)
class Polar(GroupedKeys):
    """A run of keys whose pairs of channels are points in a plane.

    A code stands for the middle of its step.

    Args:
        codes: of pairs, the radius above the angle, uint8 [B, G, m, w].
        scales: of neighbouring tokens and each pair: least radius, its step, first angle, its step [radians], float16
            [B, G, M, 4 * P].
        radius_bits: of a code.
        angle_bits: of a code.
        half: of the channels that are rotated; the first so many are paired with the next so many.
    """

    codes: Tensor
    scales: Tensor
    radius_bits: int
    angle_bits: int
    half: int

    @property
    def of_each(self) -> Tensor:
        """What each key has of its own."""
        return self.codes

    @property
    def of_groups(self) -> Tensor:
        """What neighbouring keys share."""
        return self.scales

    def dense(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Return rows start .. stop as numbers [B, G, stop - start, D]."""
        group = torch.arange(start, stop, device=self.codes.device) // self.tokens
        low, step, first, turn = self.scales[:, :, group].to(dtype).chunk(4, dim=-1)
        radius, angle = self._codes(start, stop)
        length = low + (radius.to(dtype) + 0.5) * step
        phi = first + (angle.to(dtype) + 0.5) * turn
        return joined(torch.stack([length * phi.cos(), length * phi.sin()], dim=-2), self.half)

    def logits(self, rows: Tensor, out: Tensor) -> None:
        """Write the products of rows [B, G, g, D], float32 or wider, with the first m into out [B, G, g, m]."""
        x, y = (each[..., None] for each in pairs(rows, self.half).unbind(dim=-2))
        middle = torch.arange(2**self.angle_bits, device=rows.device, dtype=rows.dtype) + 0.5
        for group in range(out.shape[3] // self.tokens):
            low, step, first, turn = self.scales[:, :, group].to(rows.dtype).chunk(4, dim=-1)
            phi = (first[..., None] + middle * turn[..., None])[:, :, None]
            table = x * phi.cos() + y * phi.sin()  # of what a radius of 1 adds [B, G, g, P, angles]
            for start, stop in self.blocks(group):
                radius, angle = (codes.mT[:, :, None] for codes in self._codes(start, stop))
                found = table.gather(-1, angle.long().expand(-1, -1, rows.shape[2], -1, -1))
                found *= low[:, :, None, :, None] + (radius.to(rows.dtype) + 0.5) * step[:, :, None, :, None]
                out[..., start:stop] = found.sum(dim=-2)

    def _codes(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return the codes of radii and of angles, uint8 [B, G, stop - start, P]."""
        both = unpack(self.codes[:, :, start:stop], self.radius_bits + self.angle_bits, self.scales.shape[3] // 4)
        return both >> self.angle_bits, both & (2**self.angle_bits - 1)


def pairs(rows: Tensor, half: int) -> Tensor:
    """Return rows [..., D] as pairs [..., 2, D / 2]: those that are rotated together, then halves of the others."""
    rest = rows.shape[-1] // 2 - half
    turned, others = rows.split([2 * half, 2 * rest], dim=-1)
    return torch.cat([turned.unflatten(-1, (2, half)), others.unflatten(-1, (2, rest))], dim=-1)


def joined(found: Tensor, half: int) -> Tensor:
    """Return pairs [..., 2, D / 2] as rows [..., D]."""
    return torch.cat([found[..., :half].flatten(-2), found[..., half:].flatten(-2)], dim=-1)
