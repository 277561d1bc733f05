"""The coordinates that keys and values of a layer are written in."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kvbench.types import ModelView


@dataclass(frozen=True, eq=False)
class Basis:
    """How the keys, or the values, of a layer become coordinates, by groups of h neighbouring heads.

    They lose their rotation and their bias, channels are divided by their scales, and what is left goes along
    directions, or into another order; queries go the way that coordinates come back.

    Args:
        directions: orthonormal over the heads of a group [n, h, D, r], n = 1 where groups do not differ; None where
            coordinates are the numbers themselves, or these in another order.
        scale: of the channels [G, D], or None for 1.
        bias: what was added to entries before they were cached [G, D], or None.
        rotary: inverse frequencies, where entries were rotated after that and are written without [rotary_dim / 2]; or
            None.
        place: of each channel among the coordinates of its group [n, h, D], where these are channels in another order.
    """

    directions: Tensor | None
    scale: Tensor | None
    bias: Tensor | None
    rotary: Tensor | None
    place: Tensor | None = None

    @property
    def joined(self) -> int:
        """Heads of a group."""
        across = self.directions if self.place is None else self.place
        return 1 if across is None else across.shape[1]

    @property
    def rank(self) -> int:
        """Coordinates of a group."""
        if self.place is not None:
            return self.place[0].numel()
        if self.directions is not None:
            return self.directions.shape[3]
        assert self.scale is not None, "coordinates without directions are for scales"
        return self.scale.shape[1]

    def of_heads(self, heads: slice) -> Basis:
        """Return the part of some of the heads; groups are never cut."""
        groups = slice(heads.start // self.joined, heads.stop // self.joined)
        directions, place = (
            each if each is None or len(each) == 1 else each[groups] for each in (self.directions, self.place)
        )
        scale, bias = (None if each is None else each[heads] for each in (self.scale, self.bias))
        return replace(self, directions=directions, scale=scale, bias=bias, place=place)

    def on(self, view: ModelView, layer: int) -> Basis:
        """Return it on the device of a model's layer, in storage of its own, numbers in float32 or wider."""
        wide, device = torch.promote_types(view.dtype, torch.float32), view.device_of(layer)
        directions, scale = (
            None if each is None else torch.empty(each.shape, dtype=wide, device=device).copy_(each)
            for each in (self.directions, self.scale)
        )
        place = None if self.place is None else self.place.to(device)
        return replace(self, directions=directions, scale=scale, place=place)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return what is held; the bias is the model's."""
        return tuple(each for each in (self.directions, self.scale, self.place) if each is not None)

    def coordinates(self, entries: Tensor) -> Tensor:
        """Return coordinates [B, n, T, r] of entries [B, G, T, D] without rotation."""
        if self.bias is not None:
            entries = entries - self.bias.to(entries.dtype)[:, None]
        if self.scale is not None:
            entries = entries / self.scale.to(entries.dtype)[:, None]
        if self.place is not None:
            flat = self._grouped(entries).transpose(2, 3).flatten(3)
            return torch.empty_like(flat).scatter_(3, self.place.flatten(1)[:, None].expand_as(flat), flat)
        if self.directions is None:
            return entries
        return torch.einsum("bnhtd,nhdr->bntr", self._grouped(entries), self.directions.to(entries.dtype))

    def entries(self, coordinates: Tensor) -> Tensor:
        """Return entries [B, G, T, D] without rotation."""
        out = self._back(coordinates[:, :, None])
        return out if self.bias is None else out + self.bias.to(out.dtype)[:, None]

    def queries(self, rows: Tensor) -> Tensor:
        """Return rows [B, n, h x g, r] whose products with coordinates are those of rows [B, G, g, D] with entries."""
        if self.scale is not None:
            rows = rows * self.scale.to(rows.dtype)[:, None]
        if self.place is not None:
            grouped = self._grouped(rows)
            spread = grouped.new_zeros((*grouped.shape[:4], self.rank))
            return spread.scatter_(4, self.place[:, :, None].expand_as(grouped), grouped).flatten(2, 3)
        if self.directions is None:
            return rows
        turned = torch.einsum("bnhtd,nhdr->bnhtr", self._grouped(rows), self.directions.to(rows.dtype))
        return turned.flatten(2, 3)

    def sums(self, summed: Tensor) -> Tensor:
        """Return sums of entries without their bias [B, G, g, D], of sums of coordinates [B, n, h x g, r]."""
        return self._back(summed.unflatten(2, (self.joined, -1)))

    def _back(self, coordinates: Tensor) -> Tensor:
        """Return entries [B, G, T, D] of coordinates [B, n, 1 or h, T, r]."""
        if self.place is not None:
            size = (*coordinates.shape[:2], self.joined, coordinates.shape[3], -1)
            index = self.place[:, :, None].expand(size)
            out = coordinates.expand(size).gather(4, index).flatten(1, 2)
        elif self.directions is None:
            out = coordinates.flatten(1, 2)
        else:
            directions = self.directions.to(coordinates.dtype)
            out = torch.einsum("bnhtr,nhdr->bnhtd", coordinates, directions).flatten(1, 2)
        return out if self.scale is None else out * self.scale.to(out.dtype)[:, None]

    def _grouped(self, rows: Tensor) -> Tensor:
        grouped: Tensor = rows.unflatten(1, (-1, self.joined))
        return grouped
