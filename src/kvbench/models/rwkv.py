"""RWKV-4 with transformers' weights, whose recurrence does all but one operation per token for many tokens at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import RwkvConfig, RwkvForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from kvbench.models.recurrence import States, check_keywords, chunks, predictions, scan, through_layers, wide
from kvbench.types import StateShape

NOTHING = -1e38  # logarithm of a weight that is none


class Rwkv(RwkvForCausalLM):
    """A network whose attention weighs older tokens less, channel by channel, and so needs no tokens to be kept.

    Source: Peng et al. (RWKV), arXiv:2305.13048, sec. 3 and appendix D; parameters are called as transformers'.
    Deviates: weights and hidden states are not halved every few layers, which transformers does for float16's sake.
    """

    config_class = RwkvConfig

    def layer_states(self) -> tuple[StateShape, ...]:
        """Return what each layer keeps of all it has read.

        These are the last token's inputs of both parts, and of the weighted mean its numerator, its denominator and
        the logarithm that both are divided by.
        """
        config: Any = self.config
        dtype = self.rwkv.embeddings.weight.dtype
        shifts = (StateShape(size=(config.hidden_size,), dtype=dtype),) * 2
        sums = (StateShape(size=(config.attention_hidden_size,), dtype=wide(dtype)),) * 2
        most = StateShape(size=(config.attention_hidden_size,), dtype=wide(dtype), start=NOTHING)
        return (*shifts, *sums, most)

    def set_attn_implementation(self, *_: Any, **__: Any) -> None:
        """Do nothing: there is no attention."""

    def forward(
        self, input_ids: Tensor, past_key_values: Any = None, logits_to_keep: int = 0, **keywords: Any
    ) -> CausalLMOutput:
        """Return the logits [B, T, V] of ids [B, T], or of the last of them."""
        check_keywords(keywords)
        first: Any = self.rwkv.blocks[0]
        hidden = first.pre_ln(self.rwkv.embeddings(input_ids))
        hidden = through_layers(self.rwkv.blocks, hidden, past_key_values, self.layer_states(), _read)
        return predictions(self.rwkv.ln_out(hidden), self.head, logits_to_keep)


def _read(block: Any, hidden: Tensor, states: States, real: Tensor | None) -> tuple[Tensor, States]:
    last_fed, last_asked, *sums = states
    attention, feed_forward = block.attention, block.feed_forward
    asked = _real(block.ln1(hidden), real)
    before = _shifted(asked, last_asked)
    key, value, gate = (
        getattr(attention, name)(_mixed(asked, before, getattr(attention, f"time_mix_{name}")))
        for name in ("key", "value", "receptance")
    )
    mean, after = weighted_mean(attention.time_decay, attention.time_first, key, value, tuple(sums), real)
    hidden = hidden + attention.output(gate.sigmoid() * mean.to(gate.dtype))
    fed = _real(block.ln2(hidden), real)
    before = _shifted(fed, last_fed)
    gate = feed_forward.receptance(_mixed(fed, before, feed_forward.time_mix_receptance))
    inner = feed_forward.key(_mixed(fed, before, feed_forward.time_mix_key)).relu().square()
    hidden = hidden + gate.sigmoid() * feed_forward.value(inner)
    return hidden, (fed[:, -1], asked[:, -1], *after)


def _real(rows: Tensor, real: Tensor | None) -> Tensor:
    return rows if real is None else rows * real


def _shifted(rows: Tensor, last: Tensor) -> Tensor:
    """Return each token's predecessor [B, T, hidden]."""
    return torch.cat([last[:, None], rows[:, :-1]], dim=1)


def _mixed(rows: Tensor, before: Tensor, share: nn.Parameter) -> Tensor:
    return rows * share + before * (1 - share)


def weighted_mean(
    decay: Tensor, bonus: Tensor, key: Tensor, value: Tensor, states: States, real: Tensor | None
) -> tuple[Tensor, States]:
    """Return the weighted mean of all values so far [B, T, H], and the states after the last.

    Args:
        decay: logarithm of what a token's weight falls by with every token, as a logarithm again [H].
        bonus: logarithm of what weighs the token itself more [H].
        key: logarithms of weights [B, T, H].
        value: [B, T, H].
        states: numerator and denominator, both divided by the exponential of the third [B, H].
        real: which tokens are no padding [B, T, 1]; None for all.
    """
    total, weight, most = states
    dtype = most.dtype
    fall, bonus, key, value = decay.to(dtype).exp(), bonus.to(dtype), key.to(dtype), value.to(dtype)
    if real is not None:
        key = key.masked_fill(~real, NOTHING)
    outs = []
    for keys, values in chunks(total.numel() + weight.numel(), key, value):
        peaks = _peaks(keys, most, fall)
        share = (keys - peaks[:, 1:]).exp()
        left = (peaks[:, :-1] - fall - peaks[:, 1:]).exp()
        start = torch.stack([total, weight], dim=1)
        added = torch.stack([share * values, share], dim=2)
        seen = torch.cat([start[:, None], scan(left[:, :, None].expand_as(added), added, start)], dim=1)
        own = keys + bonus
        top = torch.maximum(peaks[:, :-1], own).detach()
        past, mine = (peaks[:, :-1] - top).exp(), (own - top).exp()
        numerator, denominator = (past[:, :, None] * seen[:, :-1]).unbind(2)
        outs.append((numerator + mine * values) / (denominator + mine))
        (total, weight), most = seen[:, -1].unbind(1), peaks[:, -1]
    return torch.cat(outs, dim=1), (total, weight, most)


@torch.no_grad()
def _peaks(key: Tensor, most: Tensor, fall: Tensor) -> Tensor:
    """Return the logarithm of the heaviest weight before each token and after the last [B, T + 1, H].

    Sums are divided by its exponential so that none is too large; the mean does not depend on it.
    """
    since = torch.arange(key.shape[1] + 1, device=key.device, dtype=key.dtype)[:, None] * fall
    raised = torch.cat([most[:, None], key], dim=1) + since
    return raised.cummax(dim=1).values - since
