"""Smoothing and integer layers with one thing wrong each."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kvbench import bench
from kvbench.calibration import maxima
from kvbench.models import norms
from kvbench.models.view import weights_bytes
from kvbench.strategies.transform import int8_linear, smooth
from kvbench.strategies.transform.int8_linear import Int8Linear
from kvbench.strategies.transform.smooth import Smooth
from tests.mutants.core_mutant import Mutant
from tests.support import smoothing

scales, with_, parameters, rounded = smooth.scales, smooth._with, smooth._parameters, int8_linear.rounded
init, unsupported = Int8Linear.__init__, Smooth.unsupported
watched, is_kind = maxima._noted, norms._is


def only_the_weights_of_norms(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Forget the bias of a norm."""
    return [(name, value) for name, value in parameters(module) if name == "weight"]


def first_reader_only(maxima: Tensor, weights: list[Tensor], alpha: float) -> Tensor:
    """Take the weights of the first layer for those of all."""
    return scales(maxima, weights[:1], alpha)


def the_other_way_round(maxima: Tensor, weights: list[Tensor], alpha: float) -> Tensor:
    """Take 1 - alpha for alpha."""
    return scales(maxima, weights, 1 - alpha)


def no_scales(maxima: Tensor, weights: list[Tensor], alpha: float) -> Tensor:
    """Smooth nothing."""
    return torch.ones_like(maxima)


def norms_alone(module: nn.Module, values: Any) -> nn.Module:
    """Leave the weights that read a norm as they were."""
    return module if norms.is_linear(module) else with_(module, values)


def cut_off(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Cut codes off instead of rounding them."""
    _, scale = rounded(numbers)
    return (numbers / scale).clamp(-127, 127).to(torch.int8), scale


def one_scale_for_all(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Give all rows the scale of the largest."""
    scale = rounded(numbers)[1].amax(dim=0, keepdim=True).expand(len(numbers), 1)
    return (numbers / scale).round().clamp(-127, 127).to(torch.int8), scale


def three_bits(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Round to few codes."""
    codes, scale = rounded(numbers)
    return (codes / 42).round().to(torch.int8) * 42, scale


def with_a_float_copy(self: Int8Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Keep what was rounded as well."""
    init(self, weight, bias)
    self.register_buffer("kept", weight.clone())


def in_place(module: nn.Module, changes: Any) -> nn.Module:
    """Change the model that is given."""
    for name, new in changes.items():
        owner, _, last = name.rpartition(".")
        setattr(module.get_submodule(owner), last, new)
    return module


def without_maxima(self: Smooth, view: Any) -> None:
    """Find nothing to be wrong."""


def unprepared(self: Smooth, model: nn.Module) -> nn.Module:
    """Change nothing."""
    return model


def of_the_last_sample(one: Tensor, other: Tensor) -> Tensor:
    """Take what came last for the largest."""
    return other


class _Torch:
    """Torch, with another way to compare."""

    maximum = staticmethod(of_the_last_sample)

    def __getattr__(self, name: str) -> Any:
        """Return what torch has."""
        return getattr(torch, name)


def any_block(block: nn.Module, kind: Any) -> bool:
    """Look at the names that are wanted alone."""
    try:
        return all(norms.is_linear(block.get_submodule(name)) for names in kind.values() for name in names)
    except AttributeError:
        return False


def of_the_loaded(model: nn.Module) -> int:
    """Count a byte per number."""
    return weights_bytes(model) // 4


def sloppy(module: nn.Module, changes: Any) -> nn.Module:
    """Copy the registries of no module."""
    import copy

    made = copy.copy(module)
    made._modules = dict(module._modules)
    for name, child in module.named_children():
        below = {key.removeprefix(f"{name}."): new for key, new in changes.items() if key.startswith(f"{name}.")}
        made._modules[name] = changes.get(name) or (sloppy(child, below) if below else child)
    return made


MUTANTS = (
    Mutant(
        name="a norm's bias is not divided",
        patches=((smooth, "_parameters", only_the_weights_of_norms),),
        killed_by=(partial(smoothing.folding_keeps_the_logits, "gpt2"),),
    ),
    Mutant(
        name="weights are not multiplied",
        patches=((smooth, "_with", norms_alone),),
        killed_by=(
            partial(smoothing.folding_keeps_the_logits, "llama_gqa"),
            partial(smoothing.folding_keeps_the_logits, "gpt2"),
        ),
    ),
    Mutant(
        name="the first reader's weights are taken for all",
        patches=((smooth, "scales", first_reader_only),),
        killed_by=(partial(smoothing.half_and_half_equalises, "llama_gqa"),),
    ),
    Mutant(
        name="1 - alpha is taken for alpha",
        patches=((smooth, "scales", the_other_way_round),),
        killed_by=(partial(smoothing.half_and_half_equalises, "llama_mha"),),
    ),
    Mutant(
        name="nothing is smoothed",
        patches=((smooth, "scales", no_scales),),
        killed_by=(
            partial(smoothing.smoothing_lowers_the_error_of_an_outlier, "llama_gqa"),
            partial(smoothing.folding_keeps_the_logits, "llama_gqa"),
        ),
    ),
    Mutant(
        name="maxima are those of the last sample",
        patches=((maxima, "torch", _Torch()),),
        killed_by=(partial(smoothing.what_is_measured_comes_out_of_the_norms, "llama_gqa"),),
    ),
    Mutant(
        name="codes are cut off",
        patches=((int8_linear, "rounded", cut_off),),
        killed_by=(smoothing.the_integer_layer_equals_plain_loops,),
    ),
    Mutant(
        name="all rows have one scale",
        patches=((int8_linear, "rounded", one_scale_for_all),),
        killed_by=(smoothing.the_integer_layer_equals_plain_loops,),
    ),
    Mutant(
        name="sums are too long for a float",
        patches=((int8_linear, "EXACT", 4096),),
        killed_by=(smoothing.products_are_exact,),
    ),
    Mutant(
        name="weights have three bits",
        patches=((int8_linear, "rounded", three_bits),),
        killed_by=(partial(smoothing.loss_hardly_rises, "smoothquant"),),
    ),
    Mutant(
        name="a copy in floating point is kept",
        patches=((Int8Linear, "__init__", with_a_float_copy),),
        killed_by=(
            partial(smoothing.bytes_of_weights_are_a_closed_form, "llama_gqa"),
            smoothing.each_arm_has_its_own_weights,
        ),
    ),
    Mutant(
        name="the model is changed in place",
        patches=((smooth, "with_modules", in_place),),
        killed_by=(partial(smoothing.the_original_stays_as_it_is, "llama_gqa"),),
    ),
    Mutant(
        name="hooks are shared with the original",
        patches=((smooth, "with_modules", sloppy),),
        killed_by=(partial(smoothing.the_original_stays_as_it_is, "llama_gqa"),),
    ),
    Mutant(
        name="the network is not changed",
        patches=((Smooth, "prepare", unprepared),),
        killed_by=(
            partial(smoothing.bytes_of_weights_are_a_closed_form, "gpt2"),
            partial(smoothing.the_original_stays_as_it_is, "gpt2"),
            smoothing.each_arm_has_its_own_weights,
        ),
        error=Exception,
    ),
    Mutant(
        name="a row has other bytes than its arm",
        patches=((bench, "weights_bytes", of_the_loaded),),
        killed_by=(smoothing.each_arm_has_its_own_weights,),
    ),
    Mutant(
        name="what was loaded is kept",
        patches=((bench.Bench, "alone", lambda self, name: self.arms[name]),),
        killed_by=(smoothing.weights_of_other_arms_are_let_go_of,),
    ),
    Mutant(
        name="maxima are not asked for",
        patches=((Smooth, "unsupported", without_maxima),),
        killed_by=(partial(smoothing.a_model_without_maxima_is_a_row, "/"),),
        error=Exception,
    ),
    Mutant(
        name="any norm is taken to multiply",
        patches=((norms, "_multiplies", lambda norm: True),),
        killed_by=(smoothing.norms_are_told,),
    ),
    Mutant(
        name="what else reads a norm is not seen",
        patches=((norms, "_is", any_block),),
        killed_by=(smoothing.norms_are_told,),
    ),
)
