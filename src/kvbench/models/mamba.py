"""Mamba with transformers' weights, whose recurrence does all but one operation per token for many tokens at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, rms_norm, softplus
from transformers import MambaConfig, MambaForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from kvbench.kernels.selective_scan import is_native, selective_scan
from kvbench.models.recurrence import States, check_keywords, chunks, predictions, scan, through_layers, wide
from kvbench.types import StateShape

Mix = Callable[[Any, Tensor, States, Tensor | None], tuple[Tensor, States]]  # as `mix`


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
            StateShape(size=(config.conv_kernel, channels), dtype=dtype),
            StateShape(size=(config.state_size, channels), dtype=wide(dtype)),
        )

    def set_attn_implementation(self, *_: Any, **__: Any) -> None:
        """Do nothing: there is no attention."""

    def forward(
        self, input_ids: Tensor, past_key_values: Any = None, logits_to_keep: int = 0, **keywords: Any
    ) -> CausalLMOutput:
        """Return the logits [B, T, V] of ids [B, T], or of the last of them."""
        check_keywords(keywords)
        return predicted(self, mix, input_ids, past_key_values, logits_to_keep)


def predicted(network: Any, mix: Mix, ids: Tensor, cache: Any, logits_to_keep: int) -> CausalLMOutput:
    """Return what a network of mixers says of ids [B, T].

    Args:
        network: transformers', of which only the parameters are used.
        mix: what a mixer does.
        ids: of the tokens.
        cache: of the tokens before, or None.
        logits_to_keep: tokens whose logits are asked for; 0 for all.
    """
    backbone = network.backbone
    dtype = backbone.embeddings.weight.dtype

    def read(block: nn.Module, hidden: Tensor, states: States, real: Tensor | None) -> tuple[Tensor, States]:
        out, after = mix(block.mixer, normed(block.norm, hidden), states, real)
        return hidden + out, after

    hidden = backbone.embeddings(ids).to(wide(dtype) if network.config.residual_in_fp32 else dtype)
    hidden = through_layers(backbone.layers, hidden, cache, network.layer_states(), read)
    return predictions(normed(backbone.norm_f, hidden), network.lm_head, logits_to_keep)


def normed(norm: Any, hidden: Tensor) -> Tensor:
    """Return hidden states of one length, by transformers' norm of such a network."""
    out = rms_norm(hidden.to(wide(hidden.dtype)), norm.weight.shape, eps=norm.variance_epsilon)
    return norm.weight * out.to(norm.weight.dtype)  # type: ignore[no-any-return]


def convolved(mixer: Any, inputs: Tensor, window: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return inputs [B, T, D] after a mixer's convolution, and the last ones it needs for the next tokens [B, k, D].

    Args:
        mixer: whose convolution.
        inputs: of the tokens.
        window: the last ones before them [B, k, D].
        real: which tokens are no padding [B, T, 1]; None for all.
    """
    if real is not None:
        inputs = inputs * real
    kernel, bias = mixer.conv1d.weight, mixer.conv1d.bias
    channels, _, width = kernel.shape
    window = torch.cat([window[:, 1:], inputs], dim=1)
    if inputs.shape[1] > 1:
        out = conv1d(window.mT, kernel, bias, groups=channels).mT
    else:  # a fifth of the time that preparing a convolution takes
        out = (window * kernel[:, 0].mT).sum(dim=1, keepdim=True)
        out = out if bias is None else out + bias
    out = mixer.act(out)
    if real is not None:
        out = out * real  # a convolution may add something to nothing
    return out, window[:, -width:]


def mix(mixer: Any, hidden: Tensor, states: States, real: Tensor | None) -> tuple[Tensor, States]:
    """Return what a mixer makes of hidden states [B, T, hidden], and its states after them.

    Args:
        mixer: transformers', of which only the parameters are used.
        hidden: of the tokens.
        states: the last inputs of the convolution [B, k, D] and the state [B, N, D].
        real: which tokens are no padding [B, T, 1]; None for all.
    """
    window, state = states
    inputs, gate = mixer.in_proj(hidden).chunk(2, dim=-1)
    inputs, window = convolved(mixer, inputs, window, real)
    rank, size, dtype = mixer.time_step_rank, state.shape[1], state.dtype
    time, made, asked = mixer.x_proj(inputs).split([rank, size, size], dim=-1)
    time = softplus((time @ mixer.dt_proj.weight.mT).to(dtype) + mixer.dt_proj.bias.to(dtype))
    inputs = inputs.to(dtype)
    select = selective_scan if is_native(hidden.device, dtype, inputs.shape[-1]) else read_states
    out, state = select(time, inputs, made.to(dtype), asked.to(dtype), mixer.A_log.to(dtype), state)
    out = out + inputs * mixer.D.to(dtype)
    return mixer.out_proj((out * mixer.act(gate)).to(hidden.dtype)), (window, state)


def read_states(
    step: Tensor, fed: Tensor, by: Tensor, of: Tensor, log_rate: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what `kvbench.kernels.selective_scan.selective_scan` does, anywhere and in any dtype."""
    outs, rate = [], -log_rate.mT.exp()
    for here, new, made, asked in chunks(state.numel(), step, fed, by, of):
        here, new = here[:, :, None], new[:, :, None]
        seen = scan((here * rate).exp(), here * new * made[..., None], state)
        outs.append((asked[:, :, None] @ seen).squeeze(2))
        state = seen[:, -1]
    return torch.cat(outs, dim=1), state
