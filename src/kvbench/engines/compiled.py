"""Our own loop over a model whose products of a few rows are computed by C++ that was compiled for this processor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from kvbench.engines.eager import Eager
from kvbench.kernels import few_rows
from kvbench.models.laying import lay_out
from kvbench.models.normed import renorm
from kvbench.models.siblings import fuse
from kvbench.types import ModelView

FEW = 8  # rows up to which reading the weights takes longer than multiplying by them


@dataclass(frozen=True, kw_only=True)
class Compiled(Eager):
    """Runs the model's forward, with other code for what a decode step spends its time on.

    Linear layers that see at most eight tokens read their weights once, asked for before they are needed, and so does
    attention the keys and values that are kept as the model made them. Both add up in float32, in another order than
    torch does, and so do norms by mean squares. Prompts are read by torch as ever.

    Args:
        prefill_chunk: as of `Eager`.
    """

    in_rows: ClassVar[bool] = True

    def unsupported(self, view: ModelView) -> str | None:
        """Return why a model's steps cannot be computed so, or None."""
        reason = few_rows.why_not(view.device, view.dtype)
        return None if reason is None else f"engine={type(self).__name__.lower()} {reason}"

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return the model itself, with other code for its linear layers and norms."""
        lay_out(model, in_rows=True)
        fuse(model, _Few)
        for module in model.modules():
            if type(module) is nn.Linear and module.weight.is_contiguous() and few_rows.fits(module.in_features):
                module.__class__ = _Linear
            elif type(module) is Conv1D and few_rows.fits(module.nx):
                module.__class__ = _Conv1D
        renorm(model, _normed)
        return model

    def view(self, view: ModelView) -> ModelView:
        """Return what strategies may know of a prepared model."""
        return replace(view, is_compiled=True)


class _Linear(nn.Linear):
    _matrix: few_rows.Matrix | None = None  # the weights, as long as they are where they were

    def forward(self, input: Tensor) -> Tensor:
        """Return input [..., K] by the weights, and the bias."""
        if input.numel() > FEW * input.shape[-1]:
            return super().forward(input)
        matrix = self._matrix
        if matrix is None or matrix.address != self.weight.data_ptr():
            matrix = self._matrix = _matrix_of(self.weight, self.bias)
        return _product(input, matrix)


class _Conv1D(Conv1D):
    _matrix: few_rows.Matrix | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return x [..., K] by the weights, and the bias."""
        if x.numel() > FEW * x.shape[-1]:
            many: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return many
        matrix = self._matrix
        if matrix is None or matrix.address != self.weight.data_ptr():
            matrix = self._matrix = _matrix_of(self.weight.T, self.bias)
        return _product(x, matrix)


class _Few:
    """Products with one matrix [n, K] and a bias [n], or None."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias
        self._matrix = _matrix_of(weight, bias) if few_rows.fits(weight.shape[1]) else None

    def __call__(self, given: Tensor) -> Tensor:
        """Return the products of rows [..., K]."""
        if self._matrix is None or given.numel() > FEW * given.shape[-1]:
            return nn.functional.linear(given, self._weight, self._bias)
        return _product(given, self._matrix)


def _matrix_of(weight: Tensor, bias: Tensor | None) -> few_rows.Matrix:
    return few_rows.Matrix(weight.detach(), None if bias is None else bias.detach().float())


def _product(given: Tensor, matrix: few_rows.Matrix) -> Tensor:
    out = matrix.products(given.float(), matrix.data.shape[0])
    return out if out.dtype == given.dtype else out.to(given.dtype)


def _normed(rows: Tensor, weight: Tensor, least: float) -> Tensor | None:
    if rows.numel() > FEW * rows.shape[-1] or rows.dtype != torch.float32 or not few_rows.fits(rows.shape[-1]):
        return None
    return few_rows.normed(rows, weight, least)
