"""Neighbouring layers share the directions of their keys and values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvbench.cache.plan import LayerPlan, score_dtype
from kvbench.types import ModelView

_STRAIGHT = 1e-3  # sine of an angle below which an arc is taken for a line


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Merges the prompt of two layers: one direction between theirs on the sphere, each layer's own lengths.

    Source: Liu et al. (MiniCache), arXiv:2405.14366, sec. 4; no official code.
    Deviates: a fixed share of the tokens with the largest angles is retained, where the paper sets a threshold between
        the smallest and the largest distance, so that the memory is known in advance. Tokens that follow the prompt
        stay as they are, as merging needs both layers' entries at hand. Attention reads directions and lengths in
        place; nothing is restored.

    Args:
        start: first layer of the first pair: a fraction of the depth (start_unit "ratio") or a layer ("layers").
        start_unit: what `start` counts.
        blend: where between the lower layer's direction (0) and the upper one's (1) the shared one lies.
        retained_share: tokens that both layers keep as they are, a fraction of the row's prompt, rounded up.
        num_sink: first tokens that are among these whatever their angles.
        granularity: what has a direction: each "head" of a token, or all heads of a "token" together.
    """

    merges: ClassVar[bool] = True

    start: float
    start_unit: Literal["ratio", "layers"]
    blend: float
    retained_share: float
    num_sink: int
    granularity: Literal["head", "token"]

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.start_unit == "ratio" and not 0 <= self.start < 1:
            raise ValueError(
                f"strategy.layout.start with strategy.layout.start_unit=ratio is a fraction of the depth, at least 0 "
                f"and below 1; got {self.start}. For a layer set strategy.layout.start_unit=layers."
            )
        if self.start_unit == "layers" and (self.start < 0 or self.start != int(self.start)):
            raise ValueError(
                f"strategy.layout.start with strategy.layout.start_unit=layers must be a whole number of at least 0; "
                f"got {self.start}. For a fraction of the depth set strategy.layout.start_unit=ratio."
            )
        if self.start_unit not in ("ratio", "layers"):
            raise ValueError(f"strategy.layout.start_unit must be ratio or layers; got {self.start_unit!r}.")
        if not 0 <= self.blend <= 1 or not 0 <= self.retained_share <= 1 or self.num_sink < 0:
            raise ValueError(
                f"strategy.layout needs blend and retained_share between 0 and 1 and num_sink >= 0; got "
                f"blend={self.blend}, retained_share={self.retained_share}, num_sink={self.num_sink}."
            )
        if self.granularity not in ("head", "token"):
            raise ValueError(f"strategy.layout.granularity must be head or token; got {self.granularity!r}.")

    @property
    def by_token(self) -> bool:
        """Whether all heads of a token share one direction."""
        return self.granularity == "token"

    def lower_layers(self, num_layers: int) -> Sequence[int]:
        """Return the lower layer of each pair; a last layer without a partner stays as it is."""
        share = Fraction(str(self.start))
        first = int(share * num_layers) if self.start_unit == "ratio" else int(share)
        return range(first, num_layers - 1, 2)

    def unsupported(self, plans: Sequence[LayerPlan], view: ModelView) -> str | None:
        """Return which layer of a pair does not see the whole prompt, or that there is no pair."""
        merged = [plan for plan in plans if plan.pair is not None]
        if not merged:
            return f"no two of {len(plans)} layers are left to merge from strategy.layout.start on; lower it"
        sliding = [plan for plan in merged if plan.shape.window > 0]
        if not sliding:
            return None
        return (
            f"strategy/layout=paired merges layers that see the whole prompt, and layer {sliding[0].index} sees "
            f"{sliding[0].shape.window} tokens; move strategy.layout.start or use strategy/layout=separate"
        )

    def num_retained(self, length: int) -> int:
        """Return how many tokens of so long a prompt both layers keep as they are."""
        return min(length, max(math.ceil(Fraction(str(self.retained_share)) * length), self.num_sink))

    def merge(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """Return the shared directions and the angles between the layers; see `kvbench.cache.protocols.Layout`."""
        dtype = score_dtype(lower.dtype)
        first, second = (self._normalized(layer.to(dtype)) for layer in (lower, upper))
        angle = 2 * torch.atan2(self._length(first - second), self._length(first + second))  # exact for small ones too
        sine = angle.sin()
        bent = sine > _STRAIGHT
        safe = torch.where(bent, sine, torch.ones_like(sine))
        shares = ((1 - self.blend), self.blend)
        weights = [torch.where(bent, (share * angle).sin() / safe, torch.full_like(sine, share)) for share in shares]
        return self._normalized(weights[0] * first + weights[1] * second), angle[..., 0]

    def _length(self, vectors: Tensor) -> Tensor:
        over = (1, 3) if self.by_token else (3,)
        return vectors.square().sum(dim=over, keepdim=True).sqrt()

    def _normalized(self, vectors: Tensor) -> Tensor:
        return vectors / self._length(vectors).clamp(min=torch.finfo(vectors.dtype).tiny)

    def retain(self, angle: Tensor, position: Tensor, count: int) -> Tensor:
        """Return the tokens with the largest angles [B, 1 or G, count]; ties go to the higher position."""
        priority = angle.masked_fill(position < self.num_sink, math.inf).masked_fill(position < 0, -math.inf)
        order = priority.flip(-1).sort(dim=-1, descending=True, stable=True).indices[..., :count]
        return angle.shape[2] - 1 - order
