"""Mamba with transformers' weights, whose recurrence does all but one operation per token for many tokens at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, rms_norm, softplus
from transformers import MambaConfig, MambaForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from kvbench.kernels.selective_scan import is_native, selective_scan
from kvbench.models.recurrence import States, check_keywords, chunks, predictions, scan, through_layers, wide
from kvbench.types import StateShape


class Mamba(MambaForCausalLM):
    """A selective state space model.

    Source: Gu and Dao (Mamba), arXiv:2312.00752, sec. 3.2 and algorithm 2; parameters are called as transformers'.
    """

    config_class = MambaConfig

    def layer_states(self) -> tuple[StateShape, ...]:
        """Return what each layer keeps of all it has read: inputs of the convolution, and the state space's."""
        config: Any = self.config
        dtype = self.backbone.embeddings.weight.dtype
        channels = config.intermediate_size
        return (
            StateShape(size=(channels, config.conv_kernel), dtype=dtype),
            StateShape(size=(channels, config.state_size), dtype=wide(dtype)),
        )

    def set_attn_implementation(self, *_: Any, **__: Any) -> None:
        """Do nothing: there is no attention."""

    def forward(
        self, input_ids: Tensor, past_key_values: Any = None, logits_to_keep: int = 0, **keywords: Any
    ) -> CausalLMOutput:
        """Return the logits [B, T, V] of ids [B, T], or of the last of them."""
        check_keywords(keywords)
        dtype, config = self.backbone.embeddings.weight.dtype, self.config
        hidden = self.backbone.embeddings(input_ids).to(wide(dtype) if config.residual_in_fp32 else dtype)
        hidden = through_layers(self.backbone.layers, hidden, past_key_values, self.layer_states(), _read)
        return predictions(normed(self.backbone.norm_f, hidden), self.lm_head, logits_to_keep)


def normed(norm: Any, hidden: Tensor) -> Tensor:
    """Return hidden states of one length, by transformers' norm of such a network."""
    out = rms_norm(hidden.to(wide(hidden.dtype)), norm.weight.shape, eps=norm.variance_epsilon)
    return norm.weight * out.to(norm.weight.dtype)  # type: ignore[no-any-return]


def _read(block: nn.Module, hidden: Tensor, states: States, real: Tensor | None) -> tuple[Tensor, States]:
    out, after = mix(block.mixer, normed(block.norm, hidden), states, real)
    return hidden + out, after


def mix(mixer: Any, hidden: Tensor, states: States, real: Tensor | None) -> tuple[Tensor, States]:
    """Return what a mixer makes of hidden states [B, T, hidden], and its states after them.

    Args:
        mixer: transformers', of which only the parameters are used.
        hidden: of the tokens.
        states: the last inputs of the convolution [B, D, k] and the state [B, D, N].
        real: which tokens are no padding [B, T, 1]; None for all.
    """
    (window, state), tokens = states, hidden.shape[1]
    inputs, gate = mixer.in_proj(hidden).chunk(2, dim=-1)
    if real is not None:
        inputs = inputs * real
    window = torch.cat([window, inputs.mT], dim=-1)
    kernel = mixer.conv1d.weight
    channels, _, width = kernel.shape
    inputs = mixer.act(conv1d(window[..., -tokens - width + 1 :], kernel, mixer.conv1d.bias, groups=channels)).mT
    if real is not None:
        inputs = inputs * real  # a convolution may add something to nothing
    rank, size, dtype = mixer.time_step_rank, state.shape[-1], state.dtype
    time, made, asked = mixer.x_proj(inputs).split([rank, size, size], dim=-1)
    time = softplus((time @ mixer.dt_proj.weight.mT).to(dtype) + mixer.dt_proj.bias.to(dtype))
    rate = -mixer.A_log.to(dtype).exp()
    inputs = inputs.to(dtype)
    select = selective_scan if is_native(hidden.device, dtype, channels) else read_states
    out, state = select(time, inputs, made.to(dtype), asked.to(dtype), rate, state)
    out = out + inputs * mixer.D.to(dtype)
    return mixer.out_proj((out * mixer.act(gate)).to(hidden.dtype)), (window[..., -width:], state)


def read_states(
    step: Tensor, fed: Tensor, by: Tensor, of: Tensor, rate: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what `kvbench.kernels.selective_scan.selective_scan` does, anywhere and in any dtype."""
    outs = []
    for here, new, made, asked in chunks(state.numel(), step, fed, by, of):
        seen = scan((here[..., None] * rate).exp(), (here * new)[..., None] * made[:, :, None], state)
        outs.append((seen @ asked[..., None]).squeeze(-1))
        state = seen[:, -1]
    return torch.cat(outs, dim=1), state
