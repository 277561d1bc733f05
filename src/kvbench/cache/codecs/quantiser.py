"""How numbers become small codes: which of them share a scale, and what the codes stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kvbench.cache.codecs import normal
from kvbench.cache.codecs.base import Kept, Packing
from kvbench.kernels.packed import Form, Kernel, Packed, Run
from kvbench.kernels.packing import pack, packed_width

LARGEST_E4M3 = 448.0
_KEPT = {"float16": torch.float16, "e4m3": torch.float8_e4m3fn}
_BITS = {"integers": (2, 3, 4, 8), "e4m3": (8,), "float16": (16,), "normal": (2, 3, 4)}


@dataclass(frozen=True, kw_only=True)
class Quantiser(Packing):
    """Rounds numbers to codes; scales and least numbers are kept in few bits, and codes are made with what is kept.

    Args:
        bits: of a code: 2, 3, 4 or 8; 16 for levels=float16, not 8 for levels=normal.
        along: whose numbers share a scale: "channels", neighbouring ones of a token, or "tokens", neighbouring ones
            of a channel.
        group: how many numbers share a scale; with "channels" 0 stands for all of a token and head.
        symmetric: whether codes reach as far below 0 as above it; otherwise a group's least number is kept too.
        levels: what codes stand for: "integers", "e4m3", floating point numbers of 8 bits, "float16", the numbers
            themselves, which have no scales, or "normal", the levels that are best for normal numbers, times the root
            of the mean square of a token and head.
        clip: of a group's least and of its largest number, how far codes reach; what is beyond is cut off.
        scales: what scales and least numbers are kept in: "float16", or "e4m3", 8 bits up to 448, of integers only.
    """

    bits: int
    along: Literal["channels", "tokens"]
    group: int
    symmetric: bool
    levels: Literal["integers", "e4m3", "float16", "normal"]
    clip: float
    scales: Literal["float16", "e4m3"]

    def __post_init__(self) -> None:
        """Refuse codes and groups that mean nothing."""
        if self.levels not in _BITS:
            raise ValueError(f"strategy.codec.*.levels must be {', '.join(_BITS)}; got {self.levels!r}.")
        possible = _BITS[self.levels]
        if self.bits not in possible:
            raise ValueError(
                f"strategy.codec.*.bits with levels={self.levels} must be one of {list(possible)}; got {self.bits}."
            )
        if self.along not in ("channels", "tokens"):
            raise ValueError(f"strategy.codec.*.along must be channels or tokens; got {self.along!r}.")
        least = 0 if self.along == "channels" else 2
        if self.group < least:
            raise ValueError(
                f"strategy.codec.*.group with along={self.along} must be at least {least}; got {self.group}."
            )
        if not 0 < self.clip <= 1 or (self.clip < 1 and self.symmetric):
            raise ValueError(
                f"strategy.codec.*.clip must be above 0 and at most 1, and below 1 needs "
                f"strategy.codec.*.symmetric=false; got {self.clip}."
            )
        if self.levels != "integers" and (not self.symmetric or self.along != "channels"):
            raise ValueError(
                f"strategy.codec.*.levels={self.levels} needs strategy.codec.*.symmetric=true and "
                f"strategy.codec.*.along=channels."
            )
        if self.scales not in _KEPT:
            raise ValueError(f"strategy.codec.*.scales must be {' or '.join(_KEPT)}; got {self.scales!r}.")
        if self.scales != "float16" and self.levels != "integers":
            raise ValueError(
                f"strategy.codec.*.scales={self.scales} needs strategy.codec.*.levels=integers; got {self.levels}."
            )
        if self.levels == "normal" and self.group:
            raise ValueError(f"strategy.codec.*.levels=normal needs strategy.codec.*.group=0; got {self.group}.")

    @property
    def tokens(self) -> int:
        """Tokens that share scales."""
        return self.group if self.along == "tokens" else 1

    def form(self, dim: int) -> Form:
        """Return how rows of so many numbers are packed."""
        channels = 1 if self.along == "tokens" else min(self.group or dim, dim)
        return Form(
            dim=dim,
            bits=self.bits,
            tokens=self.tokens,
            channels=channels,
            symmetric=self.symmetric,
            levels="codebook" if self.levels == "normal" else self.levels,
        )

    def table(self, device: torch.device) -> Tensor | None:
        """Return what the codes of a codebook stand for, float32 [2^bits]."""
        return normal.table(self.bits, device) if self.levels == "normal" else None

    def kept(self, dim: int) -> tuple[Kept, ...]:
        """Return what is kept of entries with so many numbers: codes, scales, least numbers."""
        codes = Kept(tokens=1, width=packed_width(dim, self.bits), dtype=torch.uint8)
        scales = Kept(tokens=self.tokens, width=self.form(dim).scales, dtype=_KEPT[self.scales])
        return (codes, scales) if self.symmetric else (codes, scales, scales)

    def run(self, kept: Sequence[Tensor], dim: int, kernel: Kernel) -> Packed:
        """Return entries with so many numbers as attention reads them, of what is kept."""
        codes, scale, *low = kept
        return Packed(self.form(dim), codes, scale, low[0] if low else None, kernel, self.table(codes.device))

    def tensors(self) -> tuple[Tensor, ...]:
        """Return nothing: entries are packed with constants."""
        return ()

    def write(self, kept: Sequence[Tensor], run: Run, at: int | Tensor, entries: Tensor) -> None:
        """Pack entries where they are kept, as in Packing; both kernels find the same codes."""
        assert isinstance(run, Packed)
        if run.kernel == "native" and self.tokens == 1 and self.levels in ("integers", "e4m3"):
            from kvbench.kernels.packed import native

            native.write(entries.float(), run, at, self.clip)
        else:
            super().write(kept, run, at, entries)

    def encode(self, entries: Tensor, reach: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what is kept of entries [B, G, T, D]; T is a multiple of `tokens`.

        Args:
            entries: numbers.
            reach: magnitude of the largest symmetric code, as the scales; without one the largest number's.

        Returns:
            Packed codes [B, G, T, w], scales [B, G, T / tokens, n], and least numbers as the scales, or None.
        """
        form = self.form(entries.shape[3])
        if self.levels == "float16":
            codes = entries.half().contiguous().view(torch.uint8)
            return codes, codes.new_empty((*codes.shape[:3], 0), dtype=torch.float16), None
        if self.levels == "normal":
            codes, scale = normal.encode(entries.float(), self.bits)
            return pack(codes, self.bits), scale, None
        numbers, size = entries.float(), self.tokens
        groups = numbers.unflatten(2, (-1, size)) if size > 1 else _by_channels(numbers, form.channels)
        over = 3 if size > 1 else 4
        low, high = None, None
        if not self.symmetric:
            low, high = (end * self.clip for end in (groups.amin(dim=over), groups.amax(dim=over)))
        if low is None or high is None:
            largest = LARGEST_E4M3 if self.levels == "e4m3" else 2 ** (self.bits - 1) - 1
            scale = (groups.abs().amax(dim=over) if reach is None else reach) / largest
        else:
            scale = (high - low) / (2**self.bits - 1)
            low = self._in_few_bits(low)
        nothing = self._in_few_bits(scale).float() == 0  # all alike, as far as what is kept can tell
        scale = self._in_few_bits(torch.where(nothing, 1.0, scale))
        codes = self._codes(groups, scale.float().unsqueeze(over), low if low is None else low.float().unsqueeze(over))
        flat = codes.flatten(2, 3) if size > 1 else codes.flatten(3)[..., : form.dim]
        return pack(flat, self.bits), scale, low

    def _in_few_bits(self, numbers: Tensor) -> Tensor:
        if self.scales == "e4m3":  # which has no infinity, and of what is too large would make no number
            numbers = numbers.clamp(-LARGEST_E4M3, LARGEST_E4M3)
        return numbers.to(_KEPT[self.scales])

    def _codes(self, groups: Tensor, scale: Tensor, low: Tensor | None) -> Tensor:
        if low is not None:
            return ((groups - low) / scale).round_().clamp_(0, float(2**self.bits - 1)).to(torch.uint8)
        if self.levels == "e4m3":
            return (groups / scale).clamp_(-LARGEST_E4M3, LARGEST_E4M3).to(torch.float8_e4m3fn).view(torch.uint8)
        most: int = 2 ** (self.bits - 1) - 1
        return ((groups / scale).round_().clamp_(-most, most) + most).to(torch.uint8)


def _by_channels(numbers: Tensor, channels: int) -> Tensor:
    """Return groups of channels [B, G, T, n, c]; the last one is filled up with the last channel."""
    missing = -numbers.shape[3] % channels
    if missing:
        numbers = torch.cat([numbers, numbers[..., -1:].expand(*numbers.shape[:3], missing)], dim=-1)
    groups: Tensor = numbers.unflatten(3, (-1, channels))
    return groups
