"""Attention whose keys and values are one latent for all heads of a token, and what of the keys is rotated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward


@dataclass(frozen=True, kw_only=True)
class Latent:
    """What makes queries, and keys and values of a latent.

    Args:
        query: makes the queries of each head: channels that are not rotated, then first and second halves of pairs.
        down: makes the latent [d_c] of a token, then the rotated channels [r] of each KV head, in the same order.
        up_key: channels of the keys that are not rotated, per KV head [G, D - r, d_c].
        up_value: the values, per KV head [G, D_v, d_c].
        pairs: rotated pairs of each KV head, as indices of frequencies [G, r / 2].
    """

    query: nn.Linear
    down: nn.Linear
    up_key: Tensor
    up_value: Tensor
    pairs: Tensor


class LatentAttention(nn.Module):
    """Queries go to the latent and outputs come back from it, so that no key or value of a head is ever made.

    Source: DeepSeek-AI (MLA), arXiv:2405.04434, sec. 2.1.

    Args:
        attention: what it takes the place of.
        output: the output projection.
        latent: what it is made of.
        window: tokens a query sees, itself included; 0 for all.
    """

    pairs: Tensor
    own: Tensor

    def __init__(self, attention: Any, output: nn.Module, latent: Latent, window: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.scaling = attention.config, attention.layer_idx, attention.scaling
        self.is_causal, self.window = True, window
        self.groups, self.rotated = len(latent.pairs), 2 * latent.pairs.shape[1]
        self.latent_dim = latent.up_value.shape[2]
        self.head_dim = latent.up_key.shape[1] + self.rotated
        self.num_key_value_groups = latent.query.out_features // self.head_dim  # all heads read the same keys
        self.q_proj, self.kv_proj, self.o_proj = latent.query, latent.down, output
        self.up_key, self.up_value = (nn.Parameter(up, requires_grad=False) for up in (latent.up_key, latent.up_value))
        self.register_buffer("pairs", latent.pairs, persistent=False)
        self.register_buffer("own", torch.eye(self.groups).to(latent.up_key)[:, None, None, :, None], persistent=False)

    @property
    def latent_width(self) -> int:
        """Numbers kept of a token."""
        return self.latent_dim + self.groups * self.rotated

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **keywords: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attention's output [B, T, hidden], and its weights where the attention function gives them."""
        query, key = self._absorbed(hidden_states, position_embeddings)
        value = key  # fast attention wants keys and values of one width; what is rotated is dropped from the output
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        keywords |= {"scaling": self.scaling, "sliding_window": self.window or None}
        out, weights = attend(self, query, key, value, attention_mask, **keywords)
        values = torch.einsum(
            "btgsc,gdc->btgsd", out.unflatten(2, (self.groups, -1))[..., : self.latent_dim], self.up_value
        )
        projected: Tensor = self.o_proj(values.flatten(2))
        return projected, weights

    def _absorbed(self, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Return queries [B, H, T, latent_width] and the one key of each token [B, 1, T, latent_width]."""
        rows = self.q_proj(hidden).unflatten(-1, (self.groups, -1, self.head_dim)).permute(0, 2, 3, 1, 4)
        plain, turning = rows.split([self.head_dim - self.rotated, self.rotated], dim=-1)
        latent, rotary = self.kv_proj(hidden).split([self.latent_dim, self.groups * self.rotated], dim=-1)
        absorbed = plain @ self.up_key[:, None]
        if self.rotated == 0:
            return absorbed.flatten(1, 2), latent[:, None]
        assert position_embeddings is not None
        cosine, sine = (t[..., self.pairs].transpose(1, 2) for t in position_embeddings)
        keys = _turned(rotary.unflatten(-1, (self.groups, -1)).transpose(1, 2), cosine, sine)
        queries = _turned(turning, cosine[:, :, None], sine[:, :, None])
        apart = (self.own * queries[..., None, :]).flatten(-2)  # a head reads what is rotated of its own KV head
        query = torch.cat([absorbed, apart], dim=-1).flatten(1, 2)
        return query, torch.cat([latent, keys.transpose(1, 2).flatten(2)], dim=-1)[:, None]


def _turned(rows: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return rows [..., T, r] of first and second halves of pairs, rotated by angles [..., T, r / 2]."""
    one, other = rows.chunk(2, dim=-1)
    return torch.cat([one * cosine - other * sine, other * cosine + one * sine], dim=-1)
