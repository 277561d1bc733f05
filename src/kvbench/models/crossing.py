"""Blocks between the layers of a model that read a context it has encoded once and then forgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """What blocks read within a pass, None where there is no context to read, and what is done with a context."""

    readers: Sequence[Reader] | None = None
    keep: Callable[[Tensor], None] | None = None  # given the hidden states that are to be encoded
    hidden: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where blocks stand in a model, and what they read an encoding of.

    Args:
        behind: layers that a block stands behind, in order.
        encoded: layer whose output is encoded, normalised; behind the last layer the model's own norm does that.
    """

    behind: tuple[int, ...]
    encoded: int

    @staticmethod
    def spread(blocks: int, layers: int) -> Places:
        """Return the places of blocks spread evenly, the last of them behind the last layer, whose output is read."""
        return Places(behind=tuple((at + 1) * layers // blocks - 1 for at in range(blocks)), encoded=layers - 1)


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
    """Blocks, and what makes the encoding they read of a model's hidden states.

    Args:
        view: of the model.
        places: where they stand.
        width: numbers of a token's encoding; the hidden states themselves where these have as many.
    """

    def __init__(self, view: ModelView, places: Places, width: int) -> None:
        super().__init__()
        hidden = view.sizes.hidden
        self.shape, self.width, self.is_trained = context_shape(view), width, False
        self.places, self.is_normed = places, places.encoded == len(view.layers) - 1
        self.encoder = nn.Linear(hidden, width, bias=False) if width < hidden else nn.Identity()
        sizes = {"hidden": hidden, "width": width, "intermediate": view.sizes.intermediate}
        self.blocks = nn.ModuleList(Crossing(self.shape, **sizes) for _ in places.behind)
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

    def encode(self, hidden: Tensor) -> Tensor:
        """Return the encoding [B, T, width] of hidden states."""
        normed = hidden if self.is_normed else nn.functional.rms_norm(hidden, hidden.shape[-1:], eps=EPSILON)
        encoding: Tensor = self.encoder(normed)
        return encoding

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
    base.register_forward_pre_hook(partial(_open, crossings), with_kwargs=True)
    base.register_forward_hook(partial(_close, crossings))
    if not crossings.is_normed:
        layers[crossings.places.encoded].register_forward_hook(partial(_note, crossings.handed))
    for index, at in enumerate(crossings.places.behind):
        layers[at].register_forward_hook(partial(_cross, crossings.handed, crossings.blocks[index], index))


def _open(crossings: Crossings, base: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Find out what this pass reads: a context that is given, that of a cache, or the prompt itself."""
    handed, cache = crossings.handed, cast("Any", keywords.get("past_key_values"))
    handed.readers, handed.keep = keywords.pop("readers", None), keywords.pop("keep", None)
    if hasattr(cache, "contexts"):
        handed.readers = None if cache.reads_prompt else cache.contexts
        handed.keep = partial(_kept, crossings, cache) if cache.reads_prompt else None
    return arguments, keywords


def _kept(crossings: Crossings, cache: Any, hidden: Tensor) -> None:
    """Keep what blocks make of a prompt."""
    encoding = crossings.encode(hidden)
    cache.keep_context(encoding, crossings.pairs(encoding))


def _note(handed: Handed, layer: Any, arguments: tuple[Any, ...], hidden: Tensor) -> None:
    """Set aside what is to be encoded, before a block adds to it."""
    handed.hidden = hidden if handed.keep else None


def _cross(handed: Handed, block: nn.Module, index: int, layer: Any, arguments: tuple[Any, ...], hidden: Tensor) -> Any:
    """Add what a block reads to what comes out of a layer."""
    return None if handed.readers is None else block(hidden, handed.readers[index])


def _close(crossings: Crossings, base: Any, arguments: tuple[Any, ...], output: Any) -> None:
    """Hand on what is to be encoded, and let go of what was handed on."""
    handed = crossings.handed
    if handed.keep is not None:
        hidden = output.last_hidden_state if crossings.is_normed else handed.hidden
        handed.keep(cast("Tensor", hidden))
    handed.readers, handed.keep, handed.hidden = None, None, None
