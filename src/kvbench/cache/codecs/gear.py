"""GEAR: packed entries whose outliers are exact, and whose errors are kept along a few directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from kvbench.cache.codecs.base import Kept, Packing
from kvbench.cache.codecs.corrected import CorrectedFormat
from kvbench.cache.codecs.outliers import too_many_channels
from kvbench.cache.codecs.packed import PackedCodec
from kvbench.cache.codecs.quantiser import Quantiser
from kvbench.kernels.packed import Kernel, Outliers, Packed
from kvbench.types import ModelView


@dataclass(frozen=True, kw_only=True)
class Gear(PackedCodec):
    """Keys and values gather and are packed all at once; what their codes miss is kept in two other ways.

    Some numbers of each token stay exact, and scales are made without them. What is wrong with the others is kept as
    the product of two thin matrices for each head: one for the prompt, one for each block that is packed later.

    Source: Kang et al. (GEAR), arXiv:2403.05527, sec. 3.
    Deviates: as many outliers for each token and head, at least one, on whichever side they lie, where the authors
        take as many of the largest and of the smallest numbers of each channel of the keys and each token's values.

    Args:
        key_quantiser: as in PackedCodec.
        value_quantiser: as in PackedCodec.
        residual: tokens that gather, exact, until they are packed at once.
        kernel: as in ReadByKernel; reads codes and outliers, while corrections are read in plain torch.
        outliers: share of the numbers of a token and head that stay exact, or 0.
        rank: of what corrects a prompt; 0 for no correction.
        block_rank: of what corrects a block that is packed while decoding; 0 for no correction.
    """

    takes_pieces: ClassVar[bool] = False  # a prompt is corrected whole

    outliers: float
    rank: int
    block_rank: int

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        super().__post_init__()
        if self.residual < 2:
            raise ValueError(
                f"strategy.codec.residual must be at least 2 with strategy/codec=gear, as tokens are corrected "
                f"together; got {self.residual}."
            )
        if not 0 <= self.outliers <= 0.5 or min(self.rank, self.block_rank) < 0:
            raise ValueError(
                f"strategy.codec.outliers must be between 0 and 0.5, strategy.codec.rank and strategy.codec.block_rank "
                f"0 or more; got {self.outliers}, {self.rank} and {self.block_rank}."
            )

    @property
    def key_format(self) -> CorrectedFormat:
        """How keys are written."""
        return self._format(self.key_quantiser)

    @property
    def value_format(self) -> CorrectedFormat:
        """How values are written."""
        return self._format(self.value_quantiser)

    def _format(self, quantiser: Quantiser) -> CorrectedFormat:
        sparse = SparsePacking(quantiser=quantiser, outliers=self.outliers, together=self.residual)
        return CorrectedFormat(quantiser=sparse, rule=self, rank=self.rank, block_rank=self.block_rank, prompt=0)

    def unsupported(self, view: ModelView) -> str | None:
        """Return why channels cannot be told apart, or why the kernel cannot be had, or None."""
        return too_many_channels(view, "gear") or super().unsupported(view)


@dataclass(frozen=True, kw_only=True)
class SparsePacking(Packing):
    """Codes for most numbers, and as many outliers for each token and head.

    Args:
        quantiser: how the others become codes.
        outliers: share of the numbers of a token and head.
        together: tokens that are packed at once.
    """

    quantiser: Quantiser
    outliers: float
    together: int

    @property
    def tokens(self) -> int:
        """Tokens that are packed together."""
        return self.together

    def count(self, dim: int) -> int:
        """Return how many of so many numbers are outliers."""
        return max(1, round(self.outliers * dim)) if self.outliers > 0 else 0

    def kept(self, dim: int) -> tuple[Kept, ...]:
        """Return what is kept of entries with so many numbers: what codes need, outliers, and their channels."""
        outliers, channels = (
            Kept(tokens=1, width=self.count(dim), dtype=dtype, joined=True) for dtype in (torch.float16, torch.int16)
        )
        return (*self.quantiser.kept(dim), outliers, channels)

    def encode(self, entries: Tensor) -> tuple[Tensor | None, ...]:
        """Return what is kept of entries [B, G, T, D]."""
        numbers = entries.float()
        over = 2 if self.quantiser.along == "tokens" else 3
        far = (numbers - numbers.mean(dim=over, keepdim=True)).abs()
        far /= far.mean(dim=over, keepdim=True).clamp(min=torch.finfo(far.dtype).tiny)
        channel = far.topk(self.count(numbers.shape[3]), dim=-1).indices
        value = entries.gather(3, channel).half()
        rest = numbers.scatter(3, channel, torch.nan)
        codes = self.quantiser.encode(torch.where(rest.isnan(), self._middle(rest), numbers))
        first = torch.arange(numbers.shape[1], device=channel.device)[:, None, None] * numbers.shape[3]
        return (*codes, *(each.transpose(1, 2).flatten(2)[:, None] for each in (value, (channel + first).short())))

    def _middle(self, numbers: Tensor) -> Tensor:
        """Return for each of numbers [B, G, T, D] the mean of those it shares a scale with and that are there."""
        how, dim = self.quantiser, numbers.shape[3]
        if how.along == "tokens":
            groups, size = numbers.unflatten(2, (-1, how.group)), how.group
            mean = groups.nanmean(dim=3).repeat_interleave(size, dim=2)
        else:
            size = how.form(dim).channels
            groups = torch.nn.functional.pad(numbers, (0, -dim % size), value=torch.nan).unflatten(3, (-1, size))
            mean = groups.nanmean(dim=4).repeat_interleave(size, dim=3)[..., :dim]
        return torch.nan_to_num(mean, 0.0)

    def run(self, kept: Sequence[Tensor], dim: int, kernel: Kernel) -> Packed:
        """Return entries with so many numbers as attention reads them, of what is kept."""
        *coded, value, channel = kept
        packed = self.quantiser.run(coded, dim, kernel)
        return replace(packed, outliers=Outliers(value=value[:, 0], channel=channel[:, 0])) if self.outliers else packed

    def tensors(self) -> tuple[Tensor, ...]:
        """Return nothing: entries are packed with constants."""
        return ()
