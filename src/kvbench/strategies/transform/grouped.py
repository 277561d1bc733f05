"""Several KV heads become one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from kvbench.models.norms import weight_of
from kvbench.models.view import attentions
from kvbench.strategies.transform.aligning import aligned
from kvbench.strategies.transform.base import Transform, with_config, with_modules
from kvbench.types import LayerShape, ModelView

SEPARATE = ("q_proj", "k_proj", "v_proj")
FUSED = ("c_attn", "qkv_proj")


@dataclass(frozen=True, kw_only=True)
class Grouped(Transform):
    """Each group of neighbouring KV heads becomes their mean, which all query heads of the group read.

    Source: Ainslie et al. (GQA), arXiv:2305.13245, sec. 2.1; not trained on afterwards.

    Args:
        num_groups: KV heads that are left.
        align: "procrustes" turns the heads of a group towards each other first, which the model does not notice:
            values any way, keys as far as rotary positions let them, by one angle per frequency.
    """

    is_exact: ClassVar[bool] = False
    changes_heads: ClassVar[bool] = True

    num_groups: int
    align: Literal["none", "procrustes"]

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if self.num_groups < 1:
            raise ValueError(f"strategy.transform.num_groups must be at least 1; got {self.num_groups}.")
        if self.align not in ("none", "procrustes"):
            raise ValueError(f"strategy.transform.align must be none or procrustes; got {self.align!r}.")

    def unsupported(self, view: ModelView) -> str | None:
        """Return why the heads of a model cannot be grouped, or None."""
        for layer in view.layers:
            if layer.kv_heads % self.num_groups:
                fitting = [str(n) for n in range(1, layer.kv_heads + 1) if layer.kv_heads % n == 0]
                return (
                    f"strategy.transform.num_groups={self.num_groups} does not divide the {layer.kv_heads} KV heads of "
                    f"this model; set it to {' or '.join(fitting)}"
                )
            if layer.value_projection is None:
                return "strategy/transform=gqa cannot tell what makes the keys and values of this model"
            if self.align == "procrustes" and (layer.key_projection is None or layer.output is None):
                return (
                    "strategy.transform.align=procrustes needs keys that nothing follows but rotation, which this "
                    "model has not; set it to none"
                )
        return None

    def shapes(self, view: ModelView) -> ModelView:
        """Return the view with fewer KV heads, and without the weights that make them."""
        layers = (
            replace(layer, kv_heads=self.num_groups, key_projection=None, value_projection=None)
            for layer in view.layers
        )
        return replace(view, layers=tuple(layers))

    def changed(self, model: nn.Module, view: ModelView) -> nn.Module:
        """Return a model with so many KV heads."""
        changes = {name: self._grouped(*found) for name, found in attentions(model, view)}
        return with_config(with_modules(model, changes), model, num_key_value_heads=self.num_groups)

    def _grouped(self, attention: nn.Module, output: nn.Module, layer: LayerShape) -> nn.Module:
        """Return the attention of a layer with fewer KV heads."""
        heads = heads_of(attention, layer)
        out, last = _per_input(output), next(name for name, child in attention.named_children() if child is output)
        out = out.unflatten(1, (layer.query_heads, -1))
        if self.align == "procrustes":
            heads, out = aligned(heads, out, self.num_groups, layer.rotary)
        query, *pair = heads
        key, value = (made.unflatten(0, (self.num_groups, -1)).mean(dim=1) for made in pair)
        changes = _projections(attention, (query, key, value))
        if self.align == "procrustes":
            changes[last] = _like(output, out.flatten(1), getattr(output, "bias", None))
        made = with_modules(attention, changes)
        share, width = layer.query_heads // self.num_groups, layer.key_dim
        widths = [heads * width for heads in (layer.query_heads, self.num_groups, self.num_groups)]
        said = {"num_key_value_groups": share, "num_key_value_heads": self.num_groups, "split_size": widths}
        for name, number in said.items():  # what transformers' attention modules take their shapes from
            if hasattr(attention, name) or name == "num_key_value_groups":
                setattr(made, name, number)
        return made


Heads = tuple[Tensor, Tensor, Tensor]  # queries, keys, values [heads, D, hidden + 1], the last column their bias


def heads_of(attention: nn.Module, layer: LayerShape) -> Heads:
    """Return the weights that make queries, keys and values, each with its bias as one more input."""
    counts = (layer.query_heads, layer.kv_heads, layer.kv_heads)
    if all(isinstance(getattr(attention, name, None), nn.Linear) for name in SEPARATE):
        rows = [_with_bias(getattr(attention, name)) for name in SEPARATE]
    else:
        fused = _with_bias(_fused(attention)[1])
        rows = list(fused.split([count * layer.key_dim for count in counts]))
    query, key, value = (row.unflatten(0, (count, -1)) for row, count in zip(rows, counts, strict=True))
    return query, key, value


def _fused(attention: nn.Module) -> tuple[str, nn.Module]:
    return next((name, getattr(attention, name)) for name in FUSED if hasattr(attention, name))


def _with_bias(linear: nn.Module) -> Tensor:
    weight, bias = weight_of(linear), linear.bias
    wide = torch.promote_types(weight.dtype, torch.float32)
    last = weight.new_zeros(len(weight)) if bias is None else cast("Tensor", bias).detach()
    return torch.cat([weight, last[:, None]], dim=1).to(wide)


def _per_input(linear: nn.Module) -> Tensor:
    """Return the weights of a linear layer [out, in] in at least float32."""
    weight = weight_of(linear)
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _projections(attention: nn.Module, heads: Heads) -> dict[str, nn.Module]:
    """Return the linear layers that make such queries, keys and values, by name."""
    rows = [made.flatten(0, 1) for made in heads]
    if all(isinstance(getattr(attention, name, None), nn.Linear) for name in SEPARATE):
        parts = zip(SEPARATE, (getattr(attention, name) for name in SEPARATE), rows, strict=True)
        return {name: _like(linear, row[:, :-1], row[:, -1]) for name, linear, row in parts}
    name, fused = _fused(attention)
    row = torch.cat(rows)
    return {name: _like(fused, row[:, :-1], row[:, -1])}


def _like(linear: nn.Module, weight: Tensor, bias: object) -> nn.Module:
    """Return a linear layer of the same kind with other weights [out, in] and, where it has one, another bias."""
    made: Any = with_modules(linear, {})
    before = weight_of(linear)
    turned = weight if isinstance(linear, nn.Linear) else weight.t()  # as Conv1D keeps it
    made.weight = nn.Parameter(turned.to(before.dtype).contiguous(), requires_grad=False)
    if linear.bias is not None:
        made.bias = nn.Parameter(cast("Tensor", bias).detach().to(before.dtype), requires_grad=False)
    if isinstance(linear, nn.Linear):
        made.out_features = len(weight)
    else:
        made.nf = len(weight)
    return cast("nn.Module", made)
