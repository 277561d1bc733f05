"""Turning rotated keys on by a number of positions."""

from __future__ import annotations

from functools import lru_cache

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
    if isinstance(shift, Tensor):
        shift = shift[..., None] if shift.dim() == 3 else shift[:, None, None, None]
    return turn_by(keys, *turns(shift, inverse_frequency.to(keys.device), keys.dtype))


def turns(shift: Tensor | int, inverse_frequency: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of the angles of keys that are turned [..., rotary_dim / 2].

    Args:
        shift: positions [..., 1], or one number for all.
        inverse_frequency: [rotary_dim / 2].
        dtype: of the keys.
    """
    wide = torch.promote_types(dtype, torch.float32)
    if not isinstance(shift, Tensor):
        return _turns_by(shift, inverse_frequency, wide)
    angle = inverse_frequency.to(wide) * shift.to(wide)
    return angle.cos(), angle.sin()


@lru_cache(maxsize=4)
def _turns_by(shift: int, inverse_frequency: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosines and sines that all layers of a step turn their keys by."""
    angle = inverse_frequency.to(wide) * shift
    return angle.cos(), angle.sin()


def turn_by(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return keys turned by angles, as `turn` does.

    Args:
        keys: [B, G, m, D].
        cos: of the angles, whose shape is that of the keys' first half, or spreads over it.
        sin: of the angles.
    """
    half = cos.shape[-1]
    first, second = keys[..., :half], keys[..., half : 2 * half]
    turned = keys.clone()
    turned[..., :half] = torch.addcmul(first * cos, second, sin, value=-1)
    turned[..., half : 2 * half] = torch.addcmul(second * cos, first, sin)
    return turned
