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
    if not isinstance(shift, Tensor):
        return Turning(keys, inverse_frequency).by(shift)
    shift = shift[..., None] if shift.dim() == 3 else shift[:, None, None, None]
    return turn_by(keys, *turns(shift, inverse_frequency.to(keys.device), keys.dtype))


class Turning:
    """Keys that are turned again and again from where they were first, all as far: a decode step does it in each layer.

    Args:
        keys: as of `turn`; a view of them is held.
        inverse_frequency: [rotary_dim / 2].
    """

    def __init__(self, keys: Tensor, inverse_frequency: Tensor) -> None:
        self.keys, self._inverse_frequency = keys, inverse_frequency.to(keys.device)
        self._wide, half = torch.promote_types(keys.dtype, torch.float32), len(inverse_frequency)
        self._halves = keys[..., : 2 * half].unflatten(-1, (2, half))

    def by(self, shift: Tensor | int) -> Tensor:
        """Return what `turn` returns."""
        if isinstance(shift, Tensor):
            return turn(self.keys, shift, self._inverse_frequency)
        cos, sin = _turns_by(shift, self._inverse_frequency, self._wide)
        turned = torch.addcmul(self._halves * cos, self._halves.flip(-2), sin).flatten(-2).to(self.keys.dtype)
        rest = self.keys.shape[-1] - turned.shape[-1]
        if rest == 0:
            return turned
        whole = self.keys.clone()
        whole[..., :-rest] = turned
        return whole


@lru_cache(maxsize=4)
def _turns_by(shift: int, inverse_frequency: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return what both halves of keys and, the other way round, of their partners are multiplied by: [2, half]."""
    angle = inverse_frequency.to(wide) * shift
    sign = torch.arange(-1, 2, 2, device=angle.device)[:, None]
    return angle.cos().expand(2, -1), (angle * sign).sin()


def turns(shift: Tensor, inverse_frequency: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of the angles of keys that are turned [..., rotary_dim / 2].

    Args:
        shift: positions [..., 1].
        inverse_frequency: [rotary_dim / 2].
        dtype: of the keys.
    """
    wide = torch.promote_types(dtype, torch.float32)
    angle = inverse_frequency.to(wide) * shift.to(wide)
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
    turned = keys.to(cos.dtype, copy=True)
    turned[..., :half].mul_(cos).addcmul_(second, sin, value=-1)
    turned[..., half : 2 * half].mul_(cos).addcmul_(first, sin)
    return turned.to(keys.dtype)
