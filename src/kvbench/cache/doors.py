"""The two doors into transformers: a cache whose `update` returns handles, and an attention function that uses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache

from kvbench.cache.plan import LayerPlan
from kvbench.types import Step

ATTENTION = "kvbench"  # name of the attention function models are switched to
_UNDERSTOOD = {"position_ids", "use_cache", "sliding_window", "is_causal", "output_attentions"}


class Layer(Protocol):
    """What stores the entries of one layer and attends to them."""

    plan: LayerPlan
    padding: Tensor | None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float, step: Step) -> Tensor:
        """Store the new entries and attend, as `CacheLayer.attend` does."""


@dataclass(frozen=True, slots=True)
class Handle:
    """What a model carries from the cache to the attention function in place of keys and values."""

    layer: Layer
    key: Tensor
    value: Tensor
    step: Step


class Door(Cache):
    """What transformers asks of a cache that returns handles, and makes its own masks."""

    @property
    def is_compileable(self) -> bool:
        """Whether transformers may compile around it."""
        return False

    @property
    def is_sliding(self) -> list[bool]:
        """No layer needs a mask of transformers'."""
        return [False] * len(self.layers)

    is_linear = is_dummy = is_sliding

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Return the columns a padding mask has; each layer makes its own mask of what it holds."""
        return self.get_seq_length(layer_idx) + query_length, 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Return the position of the first new token."""
        return self.get_seq_length(layer_idx)

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: eviction cannot be undone."""
        self._refuse()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Refuse: rows cannot change places."""
        self._refuse()

    def reset(self) -> None:
        """Refuse: a new sequence needs a new cache."""
        self._refuse()

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Refuse: rows cannot be repeated."""
        self._refuse()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Refuse: rows cannot be chosen."""
        self._refuse()

    def _refuse(self) -> None:
        raise ValueError(
            "a kvbench cache serves one batch from its prompt on: no beam search, no assisted decoding, no reuse. "
            "Build a new cache, or use strategy=transformers."
        )


def storage_bytes(tensors: Sequence[Tensor]) -> int:
    """Return the bytes of all storages of tensors, each once."""
    storages = [t.untyped_storage() for t in tensors if t.numel() > 0]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def attention(
    module: nn.Module,
    query: Tensor,
    key: Handle | Tensor,
    value: Handle | Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **keywords: Any,
) -> tuple[Tensor, None]:
    """Attend through the handle: the function that models switched to "kvbench" call.

    Raises:
        ValueError: without a kvbench cache, or for an attention feature that is not implemented.
    """
    if not isinstance(key, Handle):
        raise ValueError("attention 'kvbench' needs a cache made by a kvbench strategy as past_key_values")
    unknown = {name for name, given in keywords.items() if given is not None} - _UNDERSTOOD
    if unknown:
        raise ValueError(f"attention keywords {sorted(unknown)} are not implemented; use strategy=transformers")
    window = keywords.get("sliding_window") or 0
    if window != key.layer.plan.shape.window:
        raise ValueError(f"layer {key.layer.plan.index} says window {window}, planned {key.layer.plan.shape.window}")
    if attention_mask is not None and key.layer.padding is None:
        raise ValueError("padded prompts need their lengths: build the cache with RunShape.prompt_lengths per row")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    out = key.layer.attend(query, key.key, key.value, scale, key.step)
    return out.transpose(1, 2).contiguous(), None


def _padding_mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    return None if attention_mask is None or bool(attention_mask.all()) else attention_mask


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, _padding_mask)
