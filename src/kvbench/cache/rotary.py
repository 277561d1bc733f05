"""Keys, rotated and not, for those who may not import kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.kernels.rotary import Turning, turn, turn_by, turns

__all__ = ["Turning", "channel_products", "turn", "turn_by", "turned_back", "turns"]


def turned_back(entries: Tensor, position: Tensor | int | None, rotary: Tensor | None) -> Tensor:
    """Return entries as they were before they were rotated, float32 or wider.

    Args:
        entries: [B, G, m, D].
        position: of the entries [B, 1 or G, m], or the one of all; None only where nothing is rotated.
        rotary: inverse frequencies [rotary_dim / 2]; None where nothing is rotated.
    """
    wide = entries.to(torch.promote_types(entries.dtype, torch.float32))
    if rotary is None:
        return wide
    assert position is not None
    return turn(wide, -position, rotary)


def channel_products(rows: Tensor, index: Tensor, position: Tensor, rotary: Tensor) -> Tensor:
    """Return the products of rows with keys that are 1 in one channel, and 0 in all others, before they are rotated.

    Args:
        rows: [B, G, g, D].
        index: the channels, of B x G x D [n].
        position: of the keys [B, 1 or G, m].
        rotary: inverse frequencies [rotary_dim / 2].

    Returns:
        [n, g, m].
    """
    (_, heads, _, dim), half = rows.shape, len(rotary)
    head, channel = index // dim, index % dim
    frequency = torch.cat([rotary, -rotary, rotary.new_zeros(dim - 2 * half)]).to(rows)
    where = position.expand(-1, heads, -1).flatten(0, 1)[head]
    angle = frequency[channel, None] * where
    own, partner = (rows.flatten(0, 1)[head, :, each, None] for each in (channel, (channel + half) % (2 * half)))
    return own * angle.cos()[:, None] + partner * angle.sin()[:, None]
