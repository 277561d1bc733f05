"""Networks in which several layers share the keys and values of the first of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward


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
    """

    def __init__(self, attention: Any, handed: Handed, *, donor: int | None, is_last: bool) -> None:
        super().__init__()
        self.config, self.layer_idx, self.scaling = attention.config, attention.layer_idx, attention.scaling
        self.head_dim, self.num_key_value_groups = attention.head_dim, attention.num_key_value_groups
        self.is_causal = True
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
        **keywords: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attention's output [B, T, hidden], and its weights where the attention function gives them."""
        query = self._heads(self.q_proj(hidden_states))
        if self.donor is None:
            key, value = self._heads(self.k_proj(hidden_states)), self._heads(self.v_proj(hidden_states))
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
            self.handed.pair = (key, value)
        else:
            assert self.handed.pair is not None
            key, value = self.handed.pair
            query, _ = apply_rotary_pos_emb(query, query[:, :0], *position_embeddings)
        if self.is_last:
            self.handed.pair = None  # else it would outlive the pass
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        out, weights = attend(self, query, key, value, attention_mask, scaling=self.scaling, **keywords)
        projected: Tensor = self.o_proj(out.flatten(2))
        return projected, weights

    def _heads(self, rows: Tensor) -> Tensor:
        """Return rows [B, T, heads * D] as heads [B, heads, T, D]."""
        heads: Tensor = rows.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return heads


def sharing(model: nn.Module, factor: int) -> dict[str, nn.Module]:
    """Return the attention modules, by name, with which every `factor` layers share keys and values.

    Args:
        model: whose attention is Llama's; of any other there are none.
        factor: layers that read the same keys and values; the last ones may be fewer.
    """
    found: dict[str, Any] = {name: module for name, module in model.named_modules() if _is_plain(module)}
    changes: dict[str, nn.Module] = {}
    handed = Handed()
    for name, attention in found.items():
        first = attention.layer_idx // factor * factor
        is_first, is_last = attention.layer_idx == first, attention.layer_idx + 1 in (first + factor, len(found))
        handed = Handed() if is_first else handed
        changes[name] = SharingAttention(attention, handed, donor=None if is_first else first, is_last=is_last)
    return changes


def _is_plain(module: nn.Module) -> bool:
    """Return whether a module is attention with four linear layers and nothing else, as Llama's."""
    parts = dict(module.named_children())
    plain = parts.keys() == {"q_proj", "k_proj", "v_proj", "o_proj"} and hasattr(module, "layer_idx")
    return plain and all(isinstance(part, nn.Linear) for part in parts.values())


class SharingConfig(LlamaConfig):
    """A Llama whose layers share keys and values."""

    model_type = "kvbench_sharing"
    sharing_layers: int = 1  # layers that read the same keys and values


class SharingForCausalLM(LlamaForCausalLM):
    """A Llama whose layers share keys and values."""

    config_class = SharingConfig

    def __init__(self, config: SharingConfig) -> None:
        super().__init__(config)
        for name, attention in sharing(self, config.sharing_layers).items():
            owner, _, last = name.rpartition(".")
            setattr(self.get_submodule(owner), last, attention)
