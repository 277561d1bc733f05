"""Keys and values of all heads become one latent, and what of the keys stays rotated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from kvbench.models.latent import Latent, LatentAttention
from kvbench.models.norms import weight_of
from kvbench.models.view import attentions, latent_shape
from kvbench.strategies.transform.base import Transform, with_config, with_modules
from kvbench.strategies.transform.grouped import heads_of
from kvbench.types import LayerShape, ModelView

MULTIPLE = 8  # a latent that is cut has so many numbers, or a multiple


@dataclass(frozen=True, kw_only=True)
class Mla(Transform):
    """Each layer's keys without rotation and its values are cut to one low rank together, with no training afterwards.

    Source: Ji et al. (MHA2MLA), arXiv:2502.14837, sec. 3; DeepSeek-AI (MLA), arXiv:2405.04434, sec. 2.1.

    Args:
        rotary_share: share of each KV head's rotated pairs that stay rotated, those of the largest products of norms.
        latent_share: rank that is left, as a share of the full one.
    """

    is_exact: ClassVar[bool] = False
    changes_heads: ClassVar[bool] = True

    rotary_share: float
    latent_share: float

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if not (0 <= self.rotary_share <= 1 and 0 < self.latent_share <= 1):
            raise ValueError(
                f"strategy.transform.rotary_share must be between 0 and 1, and latent_share above 0 and at most 1; got "
                f"{self.rotary_share} and {self.latent_share}."
            )

    def unsupported(self, view: ModelView) -> str | None:
        """Return why a model has no latents, or None."""
        known = all(
            layer.key_projection and layer.value_projection and layer.output is not None for layer in view.layers
        )
        if known or all(layer.values_are_keys for layer in view.layers):
            return None
        return (
            "strategy/transform=mla needs to know what makes keys that nothing follows but rotation, and values, which "
            "it cannot tell of this model; use strategy/transform=gqa"
        )

    def shapes(self, view: ModelView) -> ModelView:
        """Return the view with one key per token that is its value."""
        layers = (latent_shape(layer, sum(self.dims(layer))) for layer in view.layers)
        return replace(view, layers=tuple(layers))

    def dims(self, layer: LayerShape) -> tuple[int, int]:
        """Return how many numbers the latent of a layer has, and how many channels of all keys stay rotated."""
        pairs = 0 if layer.rotary is None else round(self.rotary_share * len(layer.rotary))
        made_by = [part for part in (layer.key_projection, layer.value_projection) if part is not None]
        inputs = made_by[0].weight.shape[2] + any(part.bias is not None for part in made_by)
        rows = layer.kv_heads * (layer.key_dim - 2 * pairs + layer.value_dim)
        full = min(rows, inputs)
        cut = -(-round(self.latent_share * full) // MULTIPLE) * MULTIPLE
        return full if self.latent_share == 1 else min(full, max(cut, MULTIPLE)), layer.kv_heads * 2 * pairs

    def changed(self, model: nn.Module, view: ModelView) -> nn.Module:
        """Return a model that keeps latents."""
        changes: dict[str, nn.Module] = {}
        for name, (attention, output, layer) in attentions(model, view):
            heads = heads_of(attention, layer)
            width, rotated = self.dims(layer)
            latent = _latent(*heads, layer.rotary, width, rotated // (2 * layer.kv_heads), weight_of(output))
            changes[name] = LatentAttention(attention, output, latent, layer.window)
        return with_config(with_modules(model, changes), model)


def _latent(
    query: Tensor, key: Tensor, value: Tensor, rotary: Tensor | None, width: int, num_pairs: int, like: Tensor
) -> Latent:
    """Return what makes latents.

    Args:
        query: weights [H, D, hidden + 1], the last column their bias.
        key: weights [G, D, hidden + 1].
        value: weights [G, D_v, hidden + 1].
        rotary: inverse frequencies [rotary_dim / 2], or None.
        width: numbers of a latent.
        num_pairs: of each KV head that stay rotated.
        like: of whose dtype the weights will be.
    """
    half = 0 if rotary is None else len(rotary)
    share, dim = len(query) // len(key), key.shape[1]
    pairs = loudest(query, key, half, num_pairs)
    turning = torch.cat([pairs, pairs + half], dim=1)
    plain = torch.stack([_others(mine, dim) for mine in turning])
    order = torch.cat([plain, turning], dim=1)
    queries = query.gather(1, order.repeat_interleave(share, dim=0)[..., None].expand(-1, -1, query.shape[2]))
    keys = key.gather(1, order[..., None].expand(-1, -1, key.shape[2]))
    plain_keys, rotated = keys.split([plain.shape[1], turning.shape[1]], dim=1)
    left, strength, right = torch.linalg.svd(
        torch.cat([plain_keys.flatten(0, 1), value.flatten(0, 1)]).double(), full_matrices=False
    )
    root = strength[:width].sqrt()
    up = left[:, :width] * root
    down = torch.cat([root[:, None] * right[:width], rotated.flatten(0, 1).double()])
    up_key, up_value = up.split([plain_keys.shape[0] * plain_keys.shape[1], up.shape[0] - plain.numel()])
    return Latent(
        query=_linear(queries.flatten(0, 1), like),
        down=_linear(down, like),
        up_key=up_key.unflatten(0, (len(key), -1)).to(like.dtype),
        up_value=up_value.unflatten(0, (len(value), -1)).to(like.dtype),
        pairs=pairs,
    )


def loudest(query: Tensor, key: Tensor, half: int, count: int) -> Tensor:
    """Return, per KV head, the pairs whose queries and keys have the largest products of norms [G, count], ascending.

    Args:
        query: weights [H, D, hidden + 1].
        key: weights [G, D, hidden + 1].
        half: pairs there are; a pair is channels i and i + half.
        count: pairs to choose.
    """
    norms = [rows[:, : 2 * half].unflatten(1, (2, half)).square().sum(dim=(1, 3)).sqrt() for rows in (query, key)]
    product = norms[0].unflatten(0, (len(key), -1)).sum(dim=1) * norms[1]
    chosen: Tensor = product.topk(count, dim=1).indices.sort(dim=1).values
    return chosen


def _others(channels: Tensor, dim: int) -> Tensor:
    """Return the channels of a head that are none of these."""
    left = torch.ones(dim, dtype=torch.bool, device=channels.device)
    left[channels] = False
    return left.nonzero()[:, 0]


def _linear(rows: Tensor, like: Tensor) -> nn.Linear:
    """Return a linear layer of weights with their bias as the last column."""
    has_bias = bool(rows[:, -1].any())
    made = nn.Linear(rows.shape[1] - 1, len(rows), bias=has_bias, device="meta")
    made.weight = nn.Parameter(rows[:, :-1].to(like.dtype).contiguous(), requires_grad=False)
    if has_bias:
        made.bias = nn.Parameter(rows[:, -1].to(like.dtype), requires_grad=False)
    return made
