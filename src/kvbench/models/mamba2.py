"""Mamba-2 with transformers' weights, whose recurrence is a few products of matrices for many tokens at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, silu, softplus
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.mamba2.configuration_mamba2 import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2ForCausalLM

from kvbench.models.mamba import convolved, predicted
from kvbench.models.recurrence import States, check_keywords, wide
from kvbench.types import StateShape

TOGETHER = 64  # tokens at once: what they are to each other takes as many numbers as their states


class Mamba2(Mamba2ForCausalLM):  # type: ignore[misc]  # untyped there
    """A selective state space model with heads, each of which falls at one rate.

    Source: Dao and Gu (Mamba-2), arXiv:2405.21060, sec. 6 and listing 1; parameters are called as transformers'.
    Deviates: from transformers 5.17, which norms the channels of all groups at once; 5.23 does as the authors' code.
    """

    config_class = Mamba2Config

    def layer_states(self) -> tuple[StateShape, ...]:
        """Return what each layer keeps of all it has read: inputs of the convolution, and the state space's."""
        config: Any = self.config
        dtype = self.backbone.embeddings.weight.dtype
        channels = config.num_heads * config.head_dim + 2 * config.n_groups * config.state_size
        return (
            StateShape(size=(config.conv_kernel, channels), dtype=dtype),
            StateShape(size=(config.num_heads, config.head_dim, config.state_size), dtype=wide(dtype)),
        )

    def set_attn_implementation(self, *_: Any, **__: Any) -> None:
        """Do nothing: there is no attention."""

    def forward(
        self, input_ids: Tensor, past_key_values: Any = None, logits_to_keep: int = 0, **keywords: Any
    ) -> CausalLMOutput:
        """Return the logits [B, T, V] of ids [B, T], or of the last of them."""
        check_keywords(keywords)
        return predicted(self, mix, input_ids, past_key_values, logits_to_keep)


def mix(mixer: Any, hidden: Tensor, states: States, real: Tensor | None) -> tuple[Tensor, States]:
    """Return what a mixer makes of hidden states [B, T, hidden], and its states after them.

    Args:
        mixer: transformers', of which only the parameters are used.
        hidden: of the tokens.
        states: the last inputs of the convolution [B, k, D] and the state [B, H, P, N].
        real: which tokens are no padding [B, T, 1]; None for all.
    """
    window, state = states
    heads, size, dtype = mixer.num_heads, state.shape[-1], state.dtype
    gate, inputs, time = mixer.in_proj(hidden).split([mixer.intermediate_size, window.shape[2], heads], dim=-1)
    inputs, window = convolved(mixer, inputs, window, real)
    fed, made, asked = inputs.to(dtype).split([mixer.intermediate_size, *(mixer.n_groups * size,) * 2], dim=-1)
    fed = fed.unflatten(-1, (heads, -1))
    made, asked = (each.unflatten(-1, (-1, size)) for each in (made, asked))
    time = softplus(time.to(dtype) + mixer.dt_bias.to(dtype)).clamp(*mixer.time_step_limit)
    out, state = read_states(time, fed, made, asked, -mixer.A_log.to(dtype).exp(), state)
    out = (out + fed * mixer.D.to(dtype)[:, None]).flatten(2) * silu(gate.to(dtype))
    norm = mixer.norm
    alone = (mixer.intermediate_size // mixer.n_groups,)  # channels that are normed by themselves
    out = rms_norm(out.unflatten(-1, (-1, *alone)), alone, eps=norm.variance_epsilon).flatten(2)
    return mixer.out_proj(norm.weight * out.to(hidden.dtype)), (window, state)


def read_states(
    step: Tensor, fed: Tensor, by: Tensor, of: Tensor, rate: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what each token reads of the state [B, T, H, P], and the state after the last one [B, H, P, N].

    The state of a head goes from h to exp(step * rate) h + step * fed * by with each token, which reads its product
    with `of`. Tokens that are taken together read each other's through what is left of it by then.

    Args:
        step: how far a token moves each head, above 0 [B, T, H].
        fed: what it feeds them [B, T, H, P].
        by: how it divides that over a channel's numbers [B, T, G, N]; heads of a group share it.
        of: what it reads of them [B, T, G, N].
        rate: at which they fall, below 0 [H].
        state: before the first token [B, H, P, N].
    """
    outs, shared = [], len(rate) // by.shape[2]
    for pieces in zip(*(each.transpose(1, 2).split(TOGETHER, dim=2) for each in (step, fed, by, of)), strict=True):
        here, new, made, asked = pieces
        fallen = (here * rate[:, None]).cumsum(dim=-1)
        near = (asked @ made.mT).repeat_interleave(shared, dim=1)
        made, asked = (each.repeat_interleave(shared, dim=1) for each in (made, asked))
        later = torch.ones(here.shape[-1], here.shape[-1], dtype=torch.bool, device=here.device).triu(1)
        left = (fallen[..., None] - fallen[..., None, :]).masked_fill(later, float("-inf")).exp()
        given = new * here[..., None]
        outs.append(near * left @ given + fallen.exp()[..., None] * (asked @ state.mT))
        until_end = (fallen[..., -1:] - fallen).exp()[..., None]
        state = fallen[..., -1:, None].exp() * state + (given * until_end).mT @ made
    return torch.cat(outs, dim=2).transpose(1, 2), state
