"""Norms by mean squares, as a decode step computes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Fewer = Callable[[Tensor, Tensor, float], Tensor | None]  # of rows [..., K], weights [K] and what is added to squares


def renorm(model: nn.Module, fewer: Fewer) -> None:
    """Give norms other code for a few rows.

    Args:
        model: its norms that divide float32 rows by the roots of their mean squares become others, of the same weights.
        fewer: the rows divided by those roots, by the weights; None if they are not few enough.
    """
    for module in model.modules():
        if isinstance(module, _Normed):
            module.fewer = fewer
        elif _is_norm(module):
            kind: Any = type(module)
            module.__class__ = type(kind.__name__, (_Normed, kind), {})
            made: Any = module
            made.fewer = fewer


def normed(rows: Tensor, weight: Tensor, least: float) -> Tensor | None:
    """Return a token per row [B, 1, K] divided by the root of its mean square, by weights [K]; None for several tokens.

    One product sums the squares, divides and adds: four operations are left of six.

    Args:
        rows: hidden states on a CPU, float32.
        weight: factors of the columns.
        least: added to the mean squares.
    """
    if rows.dim() != 3 or rows.shape[1] != 1 or rows.dtype != torch.float32 or rows.device.type != "cpu":
        return None
    squares = torch.baddbmm(_ONE, rows, rows.mT, beta=least, alpha=1 / rows.shape[2])
    return torch.mul(rows, squares.rsqrt_()).mul_(weight)


_ONE = torch.ones(1, 1, 1)


def _is_norm(module: nn.Module) -> bool:
    """Return whether a module divides float32 rows by the roots of their mean squares, and multiplies by weights."""
    weight, least = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if not isinstance(weight, Tensor) or not isinstance(least, float) or weight.dtype != torch.float32:
        return False
    if weight.dim() != 1 or weight.device.type != "cpu":
        return False
    row = torch.linspace(-1, 2, len(weight))[None, None]
    with torch.no_grad():
        found = normed(row, weight, least)
        return found is not None and torch.allclose(module(row), found, rtol=1e-4, atol=1e-6)


class _Normed(nn.Module):
    """What a kind of norm does with a few rows."""

    weight: Tensor
    variance_epsilon: float
    fewer: Fewer

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return hidden states [..., K] divided by the roots of their mean squares, by the weights."""
        few = self.fewer(hidden_states, self.weight, self.variance_epsilon)
        if few is not None:
            return few
        many: Tensor = super().forward(hidden_states)
        return many
