"""Networks in which several layers share the keys and values of the first of them, and others see a window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward

from kvbench.models.view import windows_of

_MASKED = ("sdpa", "eager")  # attention functions that are told by a mask what each query sees


@dataclass
class Handed:
    """What the first layer of a group hands to the others within a pass: keys [B, G, T, D], rotated, and values."""

    pair: tuple[Tensor, Tensor] | None = None


class SharingAttention(nn.Module):
    """Attention of a layer that makes keys and values for a group of layers, or takes them.

    Source: Brandon et al. (CLA), arXiv:2405.12981, sec. 2.2.

    Args:
        attention: Llama's; its projections are kept, but for those of a layer that takes what it reads.
        handed: what this group shares.
        donor: layer whose keys and values this one takes, or None if it makes them.
        is_last: whether no later layer takes them.
        window: tokens a query sees, itself included; 0 for all.
    """

    def __init__(self, attention: Any, handed: Handed, *, donor: int | None, is_last: bool, window: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.scaling = attention.config, attention.layer_idx, attention.scaling
        self.head_dim, self.num_key_value_groups = attention.head_dim, attention.num_key_value_groups
        self.is_causal, self.window = True, window
        self.handed, self.donor, self.is_last = handed, donor, is_last
        self.q_proj, self.o_proj = attention.q_proj, attention.o_proj
        if donor is None:
            self.k_proj, self.v_proj = attention.k_proj, attention.v_proj

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        *,
        asked: int = 0,
        whole: Tensor | None = None,
        **keywords: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attention's output [B, t, hidden], and its weights where the attention function gives them.

        Args:
            hidden_states: of the tokens that attend, the last ones of the pass [B, t, hidden].
            position_embeddings: cosines and sines of all tokens of the pass [B, T, rotary_dim].
            attention_mask: of all tokens of the pass.
            past_key_values: the cache, if there is one.
            asked: what `let_stop` tells layers; nothing here.
            whole: of all tokens of the pass [B, T, hidden]; None where all of them attend.
            **keywords: for the attention function.
        """
        query = self._heads(self.q_proj(hidden_states))
        query, _ = apply_rotary_pos_emb(query, query[:, :0], *(t[:, -query.shape[2] :] for t in position_embeddings))
        if self.donor is None:
            made_of = hidden_states if whole is None else whole
            key, value = self._heads(self.k_proj(made_of)), self._heads(self.v_proj(made_of))
            _, key = apply_rotary_pos_emb(key[:, :0], key, *position_embeddings)
            self.handed.pair = (key, value)
        else:
            assert self.handed.pair is not None
            key, value = self.handed.pair
        if self.is_last:
            self.handed.pair = None  # else it would outlive the pass
        is_part = query.shape[2] < key.shape[2]
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        if self.config._attn_implementation in _MASKED and (is_part or self.window > 0):
            attention_mask = _narrowed(attention_mask, query, key, self.window)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        keywords |= {"scaling": self.scaling, "sliding_window": self.window or None}
        out, weights = attend(self, query, key, value, attention_mask, **keywords)
        projected: Tensor = self.o_proj(out.flatten(2))
        return projected, weights

    def _heads(self, rows: Tensor) -> Tensor:
        """Return rows [B, T, heads * D] as heads [B, heads, T, D]."""
        heads: Tensor = rows.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return heads


def _narrowed(mask: Tensor | None, query: Tensor, key: Tensor, window: int) -> Tensor:
    """Return what the last queries see of the latest keys [B or 1, 1, t, m], of a mask that knows of no window."""
    queries, keys = query.shape[2], key.shape[2]
    at = torch.arange(keys, device=query.device)
    age = at[keys - queries :, None] - at
    seen = ((age >= 0) & (age < (window or keys)))[None, None]
    if mask is None:
        return seen
    mine = mask[:, :, -queries:, -keys:]
    return mine & seen if mine.dtype == torch.bool else mine.masked_fill(~seen, torch.finfo(mine.dtype).min)


def donors(factor: int, windows: Sequence[int]) -> list[int | None]:
    """Return per layer the one whose keys and values it takes, or None if it makes its own.

    Args:
        factor: layers without a window that read the same keys and values; the last ones may be fewer.
        windows: of the layers, 0 for none.
    """
    whole = [index for index, window in enumerate(windows) if window == 0]
    first = {index: whole[at // factor * factor] for at, index in enumerate(whole)}
    return [None if first.get(index, index) == index else first[index] for index in range(len(windows))]


def sharing(model: nn.Module, factor: int, windows: Sequence[int]) -> dict[str, nn.Module]:
    """Return the attention modules, by name, with which layers share keys and values, and see no more than a window.

    Args:
        model: whose attention is Llama's; of any other there are none.
        factor: as of `donors`.
        windows: of the layers, 0 for none.
    """
    found: dict[str, Any] = {name: module for name, module in model.named_modules() if _is_plain(module)}
    changes: dict[str, nn.Module] = {}
    given, handed = donors(factor, windows), dict[int, Handed]()
    last = {index if donor is None else donor: index for index, donor in enumerate(given)}
    for name, attention in found.items():
        index = attention.layer_idx
        donor = given[index]
        first = index if donor is None else donor
        mine, is_last = handed.setdefault(first, Handed()), last[first] == index
        changes[name] = SharingAttention(attention, mine, donor=donor, is_last=is_last, window=windows[index])
    return changes


def let_stop(model: nn.Module) -> None:
    """Have layers that all read one layer's keys and values go on with those tokens alone whose logits are asked for.

    Source: Sun et al. (YOCO), arXiv:2405.05254, sec. 2.3; where layers read those of several others nothing changes.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, SharingAttention)}
    first = next((index for index, each in enumerate(found.values()) if each.window == 0), len(found))
    if first == len(found) or any(each.donor != first for each in [*found.values()][first + 1 :]):
        return
    layer = model.get_submodule([*found][first].rpartition(".")[0])
    model.register_forward_pre_hook(_note_asked, with_kwargs=True)
    layer.register_forward_pre_hook(_go_on_with_asked, with_kwargs=True)


def _note_asked(model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Tell layers of how many of the last tokens logits are asked for; 0 for all."""
    asked = keywords.get("logits_to_keep", 0)
    return arguments, {**keywords, "asked": asked if isinstance(asked, int) else 0}


def _go_on_with_asked(layer: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Leave out tokens whose logits nobody needs, but for the keys and values that are made of them."""
    (hidden,) = arguments
    asked, cache = keywords.get("asked", 0), keywords.get("past_key_values")
    if cache is not None and hasattr(cache, "num_asking"):  # ours knows who looks at more
        asked = cache.num_asking(asked)
    if not 0 < asked < hidden.shape[1]:
        return None
    return (hidden[:, -asked:],), {**keywords, "whole": layer.input_layernorm(hidden)}


def _is_plain(module: nn.Module) -> bool:
    """Return whether a module is attention with four linear layers and nothing else, as Llama's."""
    parts = dict(module.named_children())
    plain = parts.keys() == {"q_proj", "k_proj", "v_proj", "o_proj"} and hasattr(module, "layer_idx")
    return plain and all(isinstance(part, nn.Linear) for part in parts.values())


class SharingConfig(LlamaConfig):
    """A Llama whose layers share keys and values, or see a window."""

    model_type = "kvbench_sharing"
    sharing_layers: int = 1  # layers without a window that read the same keys and values
    sliding_window: int | None = None  # tokens that layers of the other kind see
    layer_types: list[str] | None = None  # per layer full_attention or sliding_attention; None for the former


class SharingForCausalLM(LlamaForCausalLM):
    """A Llama whose layers share keys and values, or see a window."""

    config_class = SharingConfig

    def __init__(self, config: SharingConfig) -> None:
        super().__init__(config)
        for name, attention in sharing(self, config.sharing_layers, windows_of(config)).items():
            owner, _, last = name.rpartition(".")
            setattr(self.get_submodule(owner), last, attention)
        let_stop(self)
