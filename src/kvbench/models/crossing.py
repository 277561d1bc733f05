"""Blocks between the layers of a model that read a context it has encoded once and then forgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from kvbench.types import LayerShape, ModelView

EPSILON = 1e-5  # of norms
SPREAD = 0.02  # of random weights; larger keys make attention so peaked at once that nothing is learnt


class Reader(Protocol):
    """What a block reads the context through."""

    def cross(self, query: Tensor, scale: float) -> Tensor:
        """Return the attention [B, H, t, D_v] of tokens behind the context to all of it; queries not rotated."""


@dataclass
class Handed:
    """What blocks read within a pass; None where there is no context to read."""

    readers: Sequence[Reader] | None = None
    cache: Any = None  # of ours, where this pass reads the prompt


class Crossing(nn.Module):
    """Attention to the context's encoding, then a feed-forward part, both added to what comes in; nothing at first.

    Source: Monteiro et al. (XC-Cache), arXiv:2404.15420, sec. 3.

    Args:
        shape: of its keys and values.
        hidden: width of a token between the layers.
        width: of a token's encoding.
        intermediate: width inside the feed-forward part.
    """

    def __init__(self, shape: LayerShape, *, hidden: int, width: int, intermediate: int) -> None:
        super().__init__()
        self.key_dim, self.value_dim = shape.key_dim, shape.value_dim
        self.attention_norm, self.norm = (nn.RMSNorm(hidden, eps=EPSILON) for _ in range(2))
        self.q_proj = nn.Linear(hidden, shape.query_heads * shape.key_dim, bias=False)
        self.k_proj = nn.Linear(width, shape.kv_heads * shape.key_dim, bias=False)
        self.v_proj = nn.Linear(width, shape.kv_heads * shape.value_dim, bias=False)
        self.o_proj = nn.Linear(shape.query_heads * shape.value_dim, hidden, bias=False)
        self.gate_proj, self.up_proj = (nn.Linear(hidden, intermediate, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, hidden: Tensor, reader: Reader) -> Tensor:
        """Return hidden states [B, t, hidden] with what the context adds to them."""
        query = _heads(self.q_proj(self.attention_norm(hidden)), self.key_dim)
        out = reader.cross(query, self.key_dim**-0.5)
        hidden = hidden + self.o_proj(out.transpose(1, 2).flatten(2))
        normed = self.norm(hidden)
        added: Tensor = self.down_proj(nn.functional.silu(self.gate_proj(normed)) * self.up_proj(normed))
        return hidden + added

    def keys_values(self, encoding: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys [B, G, T, D], not rotated, and values of an encoding [B, T, width]."""
        return _heads(self.k_proj(encoding), self.key_dim), _heads(self.v_proj(encoding), self.value_dim)


def _heads(rows: Tensor, width: int) -> Tensor:
    heads: Tensor = rows.unflatten(-1, (-1, width)).transpose(1, 2)
    return heads


class Crossings(nn.Module):
    """Blocks, and what makes the encoding they read of a model's last hidden states.

    Args:
        view: of the model.
        blocks: how many, spread evenly, the last of them behind the last layer.
        width: numbers of a token's encoding; the last hidden states themselves where these have as many.
    """

    def __init__(self, view: ModelView, blocks: int, width: int) -> None:
        super().__init__()
        hidden, layers = view.sizes.hidden, len(view.layers)
        self.shape, self.width, self.is_trained = context_shape(view), width, False
        self.behind = tuple((at + 1) * layers // blocks - 1 for at in range(blocks))
        self.encoder = nn.Linear(hidden, width, bias=False) if width < hidden else nn.Identity()
        sizes = {"hidden": hidden, "width": width, "intermediate": view.sizes.intermediate}
        self.blocks = nn.ModuleList(Crossing(self.shape, **sizes) for _ in range(blocks))
        self.handed = Handed()

    def draw(self, seed: int) -> None:
        """Draw weights at random, but for those of outputs: a block begins by adding nothing."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.ndim < 2:
                nn.init.ones_(weight)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(weight)
            else:
                nn.init.normal_(weight, std=SPREAD, generator=generator)

    def pairs(self, encoding: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return keys and values of every block."""
        return [block.keys_values(encoding) for block in self.blocks]  # type: ignore[operator]


def context_shape(view: ModelView) -> LayerShape:
    """Return what a block keeps of a token of the context: as much as a layer of the model."""
    return replace(
        view.layers[0], output=None, output_bias=None, key_projection=None, value_projection=None, part="prompt"
    )


def with_context(view: ModelView, blocks: int) -> ModelView:
    """Return the view of a model whose layers forget the prompt, of which so many blocks keep something."""
    layers = tuple(replace(layer, part="new") for layer in view.layers)
    return replace(view, layers=(*layers, *(context_shape(view),) * blocks))


def crossings_of(model: nn.Module) -> Crossings | None:
    """Return the blocks of a model, if it has any."""
    return next((module for module in model.modules() if isinstance(module, Crossings)), None)


def connect(model: Any, layers: Sequence[nn.Module], crossings: Crossings) -> None:
    """Have blocks read behind layers what is encoded when a prompt has been read.

    Args:
        model: a copy whose base and layers nobody else has.
        layers: of the model, in order.
        crossings: the blocks.
    """
    base = model.base_model
    base.crossings = crossings
    base.register_forward_pre_hook(partial(_open, crossings.handed), with_kwargs=True)
    base.register_forward_hook(partial(_close, crossings))
    for index, at in enumerate(crossings.behind):
        layers[at].register_forward_hook(partial(_cross, crossings.handed, crossings.blocks[index], index))


def _open(handed: Handed, base: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Find out what this pass reads: a context that is given, that of a cache, or the prompt itself."""
    readers, cache = keywords.pop("readers", None), cast("Any", keywords.get("past_key_values"))
    is_ours = hasattr(cache, "contexts")
    reads_prompt = is_ours and cache.reads_prompt
    handed.cache = cache if reads_prompt else None
    handed.readers = cache.contexts if is_ours and not reads_prompt else readers
    return arguments, keywords


def _cross(handed: Handed, block: nn.Module, index: int, layer: Any, arguments: tuple[Any, ...], hidden: Tensor) -> Any:
    """Add what a block reads to what comes out of a layer."""
    return None if handed.readers is None else block(hidden, handed.readers[index])


def _close(crossings: Crossings, base: Any, arguments: tuple[Any, ...], output: Any) -> None:
    """Keep what blocks make of a prompt, and let go of what was handed on."""
    handed, crossings.handed.readers = crossings.handed, None
    if handed.cache is not None:
        encoding = crossings.encoder(output.last_hidden_state)
        handed.cache.keep_context(encoding, crossings.pairs(encoding))
        handed.cache = None
