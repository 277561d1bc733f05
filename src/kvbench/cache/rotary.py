"""Turning rotated keys on by a number of positions."""

from __future__ import annotations

import torch
from torch import Tensor


def turn(keys: Tensor, shift: Tensor, inverse_frequency: Tensor) -> Tensor:
    """Return keys as if they had been written `shift` positions later.

    Rotations add, so RoPE's own scaling factor (YaRN) stays as it is in the keys.

    Args:
        keys: rotate-half RoPE keys [B, G, m, D]; dimensions past the rotary ones are left alone.
        shift: positions [B].
        inverse_frequency: [rotary_dim / 2].
    """
    wide = torch.promote_types(keys.dtype, torch.float32)
    angle = shift.to(wide)[:, None] * inverse_frequency.to(device=keys.device, dtype=wide)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    half = inverse_frequency.shape[0]
    first, second, rest = keys[..., :half], keys[..., half : 2 * half], keys[..., 2 * half :]
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat([*(t.to(keys.dtype) for t in turned), rest], dim=-1)
