"""A linear layer of which the weights are kept in 8 bits, and are multiplied as such."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MOST = 127  # largest code; -128 is left out, so that codes are symmetric
EXACT = 1024  # products of two codes that a float32 adds up without rounding: 1024 * 127^2 < 2^24
TILE = 2**18  # weights that are widened at a time: 1 MiB in float32
LEAST_ROWS = 32  # of the activations: torch's integer product on CUDA wants more than 16


class Int8Linear(nn.Module):
    """A linear layer [..., in] -> [..., out] with int8 weights and activations.

    Each output channel of the weights has a scale, found once; each token has one, found when it comes. Codes are
    multiplied and added up as integers.

    Args:
        weight: [out, in], in floating point; not kept.
        bias: [out], kept as it is, or None.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        codes, scale = rounded(weight.detach())
        self.register_buffer("weight", codes.contiguous())
        self.register_buffer("scale", scale.to(torch.float32).squeeze(1))
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the outputs of activations [..., in], in their dtype."""
        codes, scale = rounded(hidden.reshape(-1, hidden.shape[-1]))
        out = integer_product(codes, self.weight).to(scale.dtype) * (scale * self.scale)
        if self.bias is not None:
            out += self.bias
        return out.to(hidden.dtype).view(*hidden.shape[:-1], -1)

    def extra_repr(self) -> str:
        """Return the widths."""
        return f"in={self.weight.shape[1]}, out={self.weight.shape[0]}, int8"


def rounded(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Return symmetric 8-bit codes of rows [n, in] and the scale of each row [n, 1].

    The scale is rounded to float32 before codes are made, as that is what weights keep of it.
    """
    wide = numbers.to(torch.promote_types(numbers.dtype, torch.float32))
    scale = (wide.abs().amax(dim=1, keepdim=True) / MOST).to(torch.float32).to(wide.dtype)
    scale = scale.masked_fill(scale == 0, 1)
    return (wide / scale).round_().clamp_(-MOST, MOST).to(torch.int8), scale


def integer_product(rows: Tensor, weight: Tensor) -> Tensor:
    """Return rows [n, in] times weights [out, in] transposed, both int8, exactly [n, out] in int32.

    torch's integer product runs where the device multiplies 8-bit integers: on CUDA, for widths that are multiples
    of 8, and on CPUs with VNNI. Elsewhere it is a plain loop, slower than floating point, and
    the same integers come from `tiled_product`.
    """
    if rows.device.type == "cuda" and weight.shape[0] % 8 == 0 and weight.shape[1] % 8 == 0:
        filled = nn.functional.pad(rows, (0, 0, 0, max(0, LEAST_ROWS - len(rows))))
        return torch._int_mm(filled, weight.t())[: len(rows)]
    if rows.device.type == "cpu" and torch.cpu._is_vnni_supported():
        return torch._int_mm(rows, weight.t())
    return tiled_product(rows, weight)


def tiled_product(rows: Tensor, weight: Tensor) -> Tensor:
    """Return the same integers from products in float32: tiles of codes are widened and dropped again, one by one.

    A tile is so narrow that its sums stay below 2^24, where float32 has every integer: nothing is rounded.
    """
    out = torch.zeros(len(rows), len(weight), dtype=torch.int32, device=rows.device)
    step = max(1, TILE // min(rows.shape[1], EXACT))
    for first in range(0, rows.shape[1], EXACT):
        columns = slice(first, first + EXACT)
        part = rows[:, columns].float()
        for start in range(0, len(weight), step):
            tile = weight[start : start + step, columns].float()
            out[:, start : start + step] += (part @ tile.t()).to(torch.int32)
    return out
