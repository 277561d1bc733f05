"""Outliers of activations move into the weights, and both are multiplied in 8 bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from kvbench.models.norms import is_linear, linear_layers, weight_of
from kvbench.strategies.transform.base import Transform, with_modules
from kvbench.strategies.transform.int8_linear import Int8Linear
from kvbench.strategies.transform.maxima import KIND, ChannelMaxima, find
from kvbench.types import ModelView

LEAST = 1e-5  # of a scale, and of the largest weight of a channel


@dataclass(frozen=True, kw_only=True)
class Smooth(Transform):
    """Channels behind a norm are divided by a scale that the weights which read them are multiplied by, then W8A8.

    Source: Xiao et al. (SmoothQuant), arXiv:2211.10438, eq. 4 and its O1 setting: dynamic scales per token.
    Deviates: weights have a scale per output channel, where the paper's have one per tensor; attention itself is
        computed in floating point.

    Args:
        alpha: how much of the difficulty moves to the weights: 0 none of the activations' size counts, 1 all of it.
        maxima: file or folder of channel maxima; "" for where `kvbench calibrate smooth` leaves them.
    """

    calibration: ClassVar[str] = KIND
    is_exact: ClassVar[bool] = False

    alpha: float
    maxima: str

    def __post_init__(self) -> None:
        """Refuse exponents that mean nothing."""
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"strategy.transform.alpha must be between 0 and 1; got {self.alpha}.")

    def unsupported(self, view: ModelView) -> str | None:
        """Return why a model cannot be smoothed, or None; where only its maxima lack, the command that makes them."""
        if not view.norms:
            return (
                "strategy/transform=smooth cannot tell which norms of this model only linear layers read; use "
                "strategy=quantization_8bit, which packs the cache alone"
            )
        try:
            find(self.maxima, view)
        except ValueError as error:
            return str(error)
        return None

    def changed(self, model: nn.Module, view: ModelView) -> nn.Module:
        """Return a model of which the blocks' linear layers have int8 weights and nothing else."""
        found = find(self.maxima, view)
        assert found is not None, "a model without weights is not prepared"
        return in_eight_bits(model, folded(model, view, found, self.alpha))


def in_eight_bits(model: nn.Module, changed: Iterator[tuple[str, nn.Module]]) -> nn.Module:
    """Return a model of which the blocks' linear layers have int8 weights.

    Args:
        model: stays as it is.
        changed: modules to put in place of some before, by name; taken one at a time, so that no two copies of
            floating point weights live at once.
    """
    changes = {name: _packed(module) if is_linear(module) else module for name, module in changed}
    changes |= {name: _packed(module) for name, module in linear_layers(model).items() if name not in changes}
    return with_modules(model, changes)


def _packed(linear: nn.Module) -> Int8Linear:
    bias = linear.bias
    assert bias is None or isinstance(bias, Tensor)
    return Int8Linear(weight_of(linear), bias)


def folded(model: nn.Module, view: ModelView, found: ChannelMaxima, alpha: float) -> Iterator[tuple[str, nn.Module]]:
    """Yield, by name, norms divided by the scales of their channels and the linear layers multiplied by them.

    Args:
        model: stays as it is.
        view: of the model.
        found: its maxima.
        alpha: exponent.
    """
    modules = dict(model.named_modules())
    for norm, maxima in zip(view.norms, found.maxima, strict=True):
        weights = [weight_of(modules[name]) for name in norm.readers]
        scale = scales(torch.tensor(maxima, dtype=torch.float64), weights, alpha)
        yield norm.norm, _with(modules[norm.norm], {n: p / scale.to(p) for n, p in _parameters(modules[norm.norm])})
        for name in norm.readers:
            weight = weight_of(modules[name])
            wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
            larger = wide * scale.to(wide)
            turned = larger if isinstance(modules[name], nn.Linear) else larger.t()  # as Conv1D keeps it
            yield name, _with(modules[name], {"weight": turned})


def scales(maxima: Tensor, weights: list[Tensor], alpha: float) -> Tensor:
    """Return the scale of each channel [in], in float64 on the host.

    Args:
        maxima: largest magnitude of each channel [in].
        weights: of all linear layers that read them [out, in].
        alpha: exponent.
    """
    largest = torch.stack([weight.abs().amax(dim=0).double().cpu() for weight in weights]).amax(dim=0)
    return (maxima**alpha / largest.clamp(min=LEAST) ** (1 - alpha)).clamp(min=LEAST)


def _parameters(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, parameter.detach()) for name, parameter in module.named_parameters(recurse=False)]


def _with(module: nn.Module, parameters: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of a module with some of its parameters replaced."""
    made = with_modules(module, {})
    for name, value in parameters.items():
        made.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return made
