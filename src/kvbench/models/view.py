"""What a strategy may know of a transformers model, read from its config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from kvbench.models.crossing import crossings_of, with_context
from kvbench.models.norms import norms_of
from kvbench.models.rereading import reads_again, without_entries
from kvbench.types import LayerShape, ModelView, Projection, Sizes

Found = tuple[nn.Module, nn.Module] | None  # the attention of a layer and its output projection, if they can be told
ANY_LENGTH = 2**31 - 1  # positions of a model that counts none


def view_of(model: nn.Module) -> ModelView:
    """Return the view of a causal language model."""
    if hasattr(model, "layer_states"):
        return _recurrent(model)
    config: Any = model.config
    config = config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    parameter = next(model.parameters())
    attentions = [attention_of(model, index) for index in range(config.num_hidden_layers)]
    outputs = [_output(found, heads) for found in attentions]
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    projections = [_projections(model, found, heads, kv_heads) for found in attentions]
    buffers = dict(model.named_buffers())
    places = _places(model, config.num_hidden_layers, parameter.device)
    is_spread = set(places) != {parameter.device}
    layers = tuple(
        LayerShape(
            query_heads=heads,
            kv_heads=kv_heads,
            key_dim=width,
            value_dim=width,
            window=window,
            rotary=_rotary(buffers, config, index, places[index]),
            output=outputs[index][0],
            output_bias=outputs[index][1],
            key_projection=projections[index][0],
            value_projection=projections[index][1],
            donor=_donor(attentions[index]),
        )
        for index, window in enumerate(windows_of(config))
    )
    view = ModelView(
        layers=tuple(map(_as_stored, layers, attentions)),
        sizes=_sizes(model, config),
        dtype=parameter.dtype,
        device=parameter.device,
        max_positions=config.max_position_embeddings,
        has_learned_positions=all(layer.rotary is None for layer in layers),
        norms=() if is_spread else norms_of(model),  # those of a spread model run where they are only
        places=places if is_spread else (),
    )
    if reads_again(model):
        return without_entries(view)
    crossings = crossings_of(model)
    if crossings is None:
        return view
    return replace(with_context(view, len(crossings.blocks)), is_untrained=not crossings.is_trained)


def weights_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's parameters and buffers, each counted once."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def _sizes(model: nn.Module, config: Any) -> Sizes:
    """Return what a model takes beside its cache."""
    intermediate = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    return Sizes(
        weights_bytes=weights_bytes(model),
        hidden=config.hidden_size,
        intermediate=intermediate or 4 * config.hidden_size,
        vocabulary=config.vocab_size,
    )


def _recurrent(model: Any) -> ModelView:
    """Return the view of a model whose layers keep states."""
    shape = LayerShape(
        query_heads=1, kv_heads=1, key_dim=0, value_dim=0, window=0, rotary=None, states=model.layer_states()
    )
    parameter = next(model.parameters())
    return ModelView(
        layers=(shape,) * model.config.num_hidden_layers,
        sizes=_sizes(model, model.config),
        dtype=parameter.dtype,
        device=parameter.device,
        max_positions=ANY_LENGTH,
        has_learned_positions=False,
    )


def latent_shape(layer: LayerShape, width: int) -> LayerShape:
    """Return the shape of a layer that stores one key of so many numbers per token, which is its value."""
    return replace(
        layer,
        kv_heads=1,
        key_dim=width,
        value_dim=width,
        rotary=None,
        output=None,
        output_bias=None,
        key_projection=None,
        value_projection=None,
        values_are_keys=True,
    )


def _as_stored(layer: LayerShape, found: Found) -> LayerShape:
    """Return the shape of a layer by what its attention is, where a config cannot say it."""
    width = None if found is None else getattr(found[0], "latent_width", None)
    return layer if width is None else latent_shape(layer, width)


def windows_of(config: Any) -> list[int]:
    """Return what each layer sees, itself included; 0 for everything."""
    window = getattr(config, "sliding_window", None) or 0
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [window] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else 0 for kind in kinds]


def _places(model: nn.Module, layers: int, first: torch.device) -> tuple[torch.device, ...]:
    """Return the device of each layer's attention; the first one where an attention cannot be told."""
    numbered = ((getattr(module, "layer_idx", None), module) for module in model.modules())
    found = {
        index: parameter.device
        for index, module in numbered
        if isinstance(index, int)
        for parameter in module.parameters()
    }
    return tuple(found.get(index, first) for index in range(layers))


def _rotary(buffers: Mapping[str, Tensor], config: Any, index: int, place: torch.device) -> Tensor | None:
    """Return the inverse frequencies of a layer where it is, or None where the model does not rotate."""
    kinds = getattr(config, "layer_types", None)
    names = [f"{kinds[index]}_inv_freq"] if kinds is not None else []
    for name in [*names, "inv_freq"]:
        found = [buffer for key, buffer in buffers.items() if key.rsplit(".", 1)[-1] == name]
        if found:
            return found[0].to(place)
    return None


def attention_of(model: nn.Module, index: int) -> Found:
    """Return the attention of a layer and its output projection, or None if they cannot be told."""
    for module in model.modules():
        if getattr(module, "layer_idx", None) != index:
            continue
        for name in ("o_proj", "out_proj", "dense", "c_proj"):
            projection = getattr(module, name, None)
            if projection is not None and projection.weight.dim() == 2:
                return module, projection
    return None


def attentions(model: nn.Module, view: ModelView) -> Iterator[tuple[str, tuple[nn.Module, nn.Module, LayerShape]]]:
    """Yield each layer's attention by name, its output projection, and its shape."""
    names = {id(module): name for name, module in model.named_modules()}
    for index, layer in enumerate(view.layers):
        found = attention_of(model, index)
        assert found is not None
        yield names[id(found[0])], (*found, layer)


def _donor(found: Found) -> int | None:
    """Return the layer whose keys and values a layer takes, or None."""
    return None if found is None else cast("int | None", getattr(found[0], "donor", None))


def _output(found: Found, heads: int) -> tuple[Tensor | None, Tensor | None]:
    """Return the output projection of a layer's attention per query head [H, D_v, hidden], a view, and its bias."""
    if found is None:
        return None, None
    _, projection = found
    weight = cast("Tensor", projection.weight).detach()
    per_head = weight if type(projection).__name__ == "Conv1D" else weight.t()
    bias = getattr(projection, "bias", None)
    return per_head.unflatten(0, (heads, -1)), None if bias is None else bias.detach()


def _projections(
    model: nn.Module, found: Found, heads: int, kv_heads: int
) -> tuple[Projection | None, Projection | None]:
    """Return what makes the keys and the values of a layer, or None where that cannot be told."""
    if found is None:
        return None, None
    attention = found[0]
    parts = [getattr(attention, name, None) for name in ("k_proj", "v_proj")]
    if all(isinstance(part, nn.Linear) for part in parts):
        made = [Projection(*_per_head(part.weight, part.bias, kv_heads)) for part in cast("list[nn.Linear]", parts)]
    else:
        fused = getattr(attention, "c_attn", None) or getattr(attention, "qkv_proj", None)
        if fused is None:
            return None, None
        weight = fused.weight.t() if type(fused).__name__ == "Conv1D" else fused.weight
        width = weight.shape[0] // (heads + 2 * kv_heads)
        rows = [slice((heads + at * kv_heads) * width, (heads + (at + 1) * kv_heads) * width) for at in range(2)]
        biases = [None if fused.bias is None else fused.bias[mine] for mine in rows]
        made = [Projection(*_per_head(weight[m], b, kv_heads)) for m, b in zip(rows, biases, strict=True)]
    is_normed = any(getattr(attention, name, None) is not None for name in ("k_norm", "k_layernorm"))
    return None if is_normed or _scales_rotation(model) else made[0], made[1]


def _scales_rotation(model: nn.Module) -> bool:
    """Return whether rotating also changes the length of keys, as YaRN does."""
    return any(getattr(module, "attention_scaling", 1.0) != 1.0 for module in model.modules())


def _per_head(weight: Tensor, bias: Tensor | None, heads: int) -> tuple[Tensor, Tensor | None]:
    return weight.detach().unflatten(0, (heads, -1)), None if bias is None else bias.detach().unflatten(0, (heads, -1))
