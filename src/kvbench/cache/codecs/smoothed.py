"""QoQ: channels of keys that stand out are divided by what queries are multiplied by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.cache.codecs.basis import Basis
from kvbench.cache.codecs.moments import find
from kvbench.cache.codecs.projected import Measured
from kvbench.types import LayerShape, ModelView

LEAST = 1e-5  # of the largest magnitude of a channel


@dataclass(frozen=True, kw_only=True)
class SmoothedKeys(Measured):
    """Channels of keys are divided by a power of how large they get, those that are rotated into each other alike.

    Source: Lin et al. (QServe), arXiv:2405.04532, sec. 4.2, SmoothAttention, and its cache of 4 bits.
    Deviates: weights and activations stay as they are. Keys are divided when they are written and queries multiplied
        when they are read, where the paper folds both into weights: the same numbers.

    Args:
        alpha: exponent.
        moments: as in Measured.
    """

    joins_heads: ClassVar[bool] = False

    alpha: float

    def __post_init__(self) -> None:
        """Refuse exponents and latents that cannot be."""
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"strategy.codec.alpha must be between 0 and 1; got {self.alpha}.")

    def bases(self, view: ModelView, layer: int) -> tuple[Basis, None]:
        """Return the scales of the keys of a layer; its values are written as they are."""
        return _scales(view, self)[layer], None


@lru_cache(maxsize=4)
def _scales(view: ModelView, rule: SmoothedKeys) -> tuple[Basis, ...]:
    found, made = find(rule.moments, view), []
    for layer, shape in enumerate(view.layers):
        if found is None:
            scale = torch.empty(shape.kv_heads, shape.key_dim)
        else:
            scale = of_pairs(found.largest[layer].double(), shape).clamp(min=LEAST) ** rule.alpha
        made.append(Basis(None, scale, None, None).on(view, layer))
    return tuple(made)


def of_pairs(largest: Tensor, shape: LayerShape) -> Tensor:
    """Return, for channels that are rotated into each other, the larger of their magnitudes [G, D]."""
    if shape.rotary is None:
        return largest
    half = len(shape.rotary)
    both = torch.maximum(largest[:, :half], largest[:, half : 2 * half])
    return torch.cat([both, both, largest[:, 2 * half :]], dim=1)
