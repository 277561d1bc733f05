"""Our own loop over a model whose products of a few rows are computed by C++ that was compiled for this processor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kvbench.engines.eager import Eager
from kvbench.kernels import few_rows
from kvbench.types import ModelView

if TYPE_CHECKING:
    from collections.abc import Callable

FEW = 8  # rows up to which reading the weights takes longer than multiplying by them


@dataclass(frozen=True, kw_only=True)
class Compiled(Eager):
    """Runs the model's forward, with other code for what a decode step spends its time on.

    Linear layers that see at most eight tokens read their weights once, asked for before they are needed, and so does
    attention the keys and values that are kept as the model made them. Both add up in float32, in another order than
    torch does. Prompts are read by torch as ever.

    Args:
        prefill_chunk: as of `Eager`.
    """

    def unsupported(self, view: ModelView) -> str | None:
        """Return why a model's steps cannot be computed so, or None."""
        reason = few_rows.why_not(view.device, view.dtype)
        return None if reason is None else f"engine=compiled {reason}"

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return the model itself, with other code for its linear layers."""
        for module in model.modules():
            if type(module) is nn.Linear and few_rows.fits(module.in_features):
                module.__class__ = _Linear
            elif type(module) is Conv1D and few_rows.fits(module.nx):
                module.weight.data = module.weight.data.T.contiguous().T  # rows of what it multiplies with, in a row
                module.__class__ = _Conv1D
        return model

    def view(self, view: ModelView) -> ModelView:
        """Return what strategies may know of a prepared model."""
        return replace(view, is_compiled=True)


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        """Return input [..., K] by the weights, and the bias."""
        return _product(input, self.weight, self.bias, super().forward)


class _Conv1D(Conv1D):
    def forward(self, x: Tensor) -> Tensor:
        """Return x [..., K] by the weights, and the bias."""
        return _product(x, self.weight.T, self.bias, super().forward)


def _product(given: Tensor, weight: Tensor, bias: Tensor | None, many: Callable[[Tensor], Tensor]) -> Tensor:
    if given.numel() > FEW * given.shape[-1]:
        return many(given)
    bias = None if bias is None else bias.float()
    out = few_rows.products(given.reshape(-1, given.shape[-1]).float(), weight, bias)
    return out.to(given.dtype).view(*given.shape[:-1], -1)
