"""Which norms of a model are read by linear layers alone, and the linear layers of its blocks."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from kvbench.types import Norm

Readers = dict[str, tuple[str, ...]]  # of each norm of a block

KINDS: tuple[Readers, ...] = (
    {
        "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    },
    {"input_layernorm": ("self_attn.qkv_proj",), "post_attention_layernorm": ("mlp.gate_up_proj",)},
    {"ln_1": ("attn.c_attn",), "ln_2": ("mlp.c_fc",)},
)


def norms_of(model: nn.Module) -> tuple[Norm, ...]:
    """Return the norms that begin each block's attention and feed-forward part; none if they cannot be told."""
    found = []
    for name, block in _blocks(model).items():
        kind = next((kind for kind in KINDS if _is(block, kind)), None)
        if kind is None:
            return ()
        for norm, readers in kind.items():
            width = cast("Tensor", block.get_submodule(norm).weight).numel()
            names = tuple(f"{name}.{reader}" for reader in readers)
            found.append(Norm(norm=f"{name}.{norm}", readers=names, width=width))
    modules = dict(model.named_modules())
    used = [id(modules[name].weight) for norm in found for name in (norm.norm, *norm.readers)]
    multiplies = all(_multiplies(norm) for norm in {type(modules[n.norm]): modules[n.norm] for n in found}.values())
    return tuple(found) if multiplies and len(set(used)) == len(used) else ()


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers of a model's blocks, by name."""
    return {
        f"{name}.{inner}": module
        for name, block in _blocks(model).items()
        for inner, module in block.named_modules()
        if is_linear(module)
    }


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer; GPT-2 calls its own Conv1D."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def weight_of(linear: nn.Module) -> Tensor:
    """Return the weights of a linear layer [out, in], a view."""
    weight = cast("Tensor", linear.weight).detach()
    return weight if isinstance(linear, nn.Linear) else weight.t()


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the blocks of a model, by name; none if they cannot be told."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in ("layers", "h"):
            return {f"{name}.{index}": block for index, block in enumerate(module)}
    return {}


def _is(block: nn.Module, kind: Readers) -> bool:
    """Return whether a block has these norms, and nothing with weights beside attention and feed-forward."""
    own = {name for name, child in block.named_children() if next(child.parameters(), None) is not None}
    wanted = {*kind, *(reader.partition(".")[0] for readers in kind.values() for reader in readers)}
    inside = dict(block.named_modules())
    readers = [inside.get(reader) for names in kind.values() for reader in names]
    return own == wanted and all(reader is not None and is_linear(reader) for reader in readers)


def _multiplies(norm: nn.Module) -> bool:
    """Return whether a norm's outputs are in proportion to its parameters: Gemma's, which add 1 to them, are not."""
    if {name for name, _ in norm.named_parameters()} - {"weight", "bias"}:
        return False
    tried = copy.deepcopy(norm).to_empty(device="cpu")
    for parameter in tried.parameters():
        nn.init.zeros_(parameter)
    weight = cast("Tensor", tried.weight)
    with torch.no_grad():
        out: Tensor = tried(torch.arange(weight.numel(), dtype=weight.dtype)[None])
    return bool((out == 0).all())
