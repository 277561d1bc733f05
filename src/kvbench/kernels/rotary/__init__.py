"""Turning rotated keys on by a number of positions."""

from __future__ import annotations

import torch
from torch import Tensor


def turn(keys: Tensor, shift: Tensor | int, inverse_frequency: Tensor) -> Tensor:
    """Return keys as if they had been written `shift` positions later.

    Rotations add, so RoPE's own scaling factor (YaRN) stays as it is in the keys. Angles are rounded as the model's
    are, to float32 or to a wider dtype of the keys: what was turned back is what the model had before it rotated.

    Args:
        keys: rotate-half RoPE keys [B, G, m, D]; dimensions past the rotary ones are left alone.
        shift: positions [B], or [B, 1 or G, m] entry by entry, or one number for all.
        inverse_frequency: [rotary_dim / 2].
    """
    wide = torch.promote_types(keys.dtype, torch.float32)
    frequency = inverse_frequency.to(device=keys.device, dtype=wide)
    if isinstance(shift, Tensor):
        shift = shift.to(wide)[..., None] if shift.dim() == 3 else shift.to(wide)[:, None, None, None]
    angle = frequency * shift
    cos, sin = angle.cos(), angle.sin()
    half = inverse_frequency.shape[0]
    first, second = keys[..., :half], keys[..., half : 2 * half]
    turned = keys.clone()
    turned[..., :half] = first * cos - second * sin
    turned[..., half : 2 * half] = second * cos + first * sin
    return turned
