"""Keys as the signs of their products with random directions, in plain torch on any device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kvbench.kernels.packed.grouped import GroupedKeys
from kvbench.kernels.packing import unpack


@dataclass(frozen=True)
class Sketch(GroupedKeys):
    """A run of keys whose large channels are kept apart from the others, each part as signs and a length.

    Args:
        signs: of products of the other channels with all directions, a bit each, uint8 [B, G, m, w].
        large_signs: of products of the large channels with the first directions, uint8 [B, G, m, v].
        lengths: of the other channels and of the large ones, float16 [B, G, m, 2].
        large: channels of neighbouring tokens, integers [B, G, M, k].
        directions: each with D numbers, the root of D long [s, D].
        num_large: directions that large channels are multiplied with.
    """

    signs: Tensor
    large_signs: Tensor
    lengths: Tensor
    large: Tensor
    directions: Tensor
    num_large: int

    @property
    def of_each(self) -> Tensor:
        """What each key has of its own."""
        return self.signs

    @property
    def of_groups(self) -> Tensor:
        """What neighbouring keys share."""
        return self.large

    def dense(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Return the keys that give the products of rows start .. stop [B, G, stop - start, D]."""
        directions, many = self.directions.to(dtype), len(self.directions)
        group = torch.arange(start, stop, device=self.large.device) // self.tokens
        others, large = (
            torch.matmul(2 * self._bits(signs, start, stop, count, dtype) - 1, directions[:count])
            * (self._scale(count) * self.lengths[:, :, start:stop, at, None].to(dtype))
            for at, (signs, count) in enumerate(((self.signs, many), (self.large_signs, self.num_large)))
        )
        is_large = torch.zeros_like(others, dtype=torch.bool).scatter_(-1, self.large[:, :, group].long(), True)
        return torch.where(is_large, large, others)

    def logits(self, rows: Tensor, out: Tensor) -> None:
        """Write the products of rows [B, G, g, D], float32 or wider, with the first m into out [B, G, g, m]."""
        directions, many = self.directions.to(rows.dtype), len(self.directions)
        products = torch.matmul(rows, directions.mT)
        for group in range(out.shape[3] // self.tokens):
            channels = self.large[:, :, group].long()
            mine = rows.gather(-1, channels[:, :, None].expand(-1, -1, rows.shape[2], -1))
            of_large = torch.matmul(mine, directions.mT[channels])  # what large channels are of the products
            of_others = products - of_large
            of_large = of_large[..., : self.num_large]
            for start, stop in self.blocks(group):
                length, large_length = self.lengths[:, :, None, start:stop].to(rows.dtype).unbind(dim=-1)
                others = self._signed(of_others, self.signs, start, stop) * (self._scale(many) * length)
                large = self._signed(of_large, self.large_signs, start, stop)
                out[..., start:stop] = others + large * (self._scale(self.num_large) * large_length)

    def _signed(self, products: Tensor, signs: Tensor, start: int, stop: int) -> Tensor:
        """Return the sums of products [B, G, g, s] with the signs of rows start .. stop [B, G, g, stop - start]."""
        bits = self._bits(signs, start, stop, products.shape[3], products.dtype)
        return 2 * torch.matmul(products, bits.mT) - products.sum(dim=-1, keepdim=True)

    def _bits(self, signs: Tensor, start: int, stop: int, count: int, dtype: torch.dtype) -> Tensor:
        """Return 1 for products above 0, and 0 for the others [B, G, stop - start, count]."""
        return unpack(signs[:, :, start:stop], 1, count).to(dtype)

    def _scale(self, count: int) -> float:
        return unbiased(self.directions.shape[1]) / count


def unbiased(dim: int) -> float:
    """Return 1 over the mean size of a number of a random direction that is the root of dim long."""
    return math.sqrt(math.pi / dim) * math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))
