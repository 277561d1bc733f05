"""What recurrent networks have in common: the recurrence itself, and how states go through the layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from kvbench.types import StateShape

AT_ONCE = 2**18  # numbers of states that are there at once: they fit a core's cache

_UNDERSTOOD = {"use_cache", "position_ids", "attention_mask"}

States = tuple[Tensor, ...]
Read = Callable[[nn.Module, Tensor, States, Tensor | None], tuple[Tensor, States]]


class _Recurrence(torch.autograd.Function):
    """One multiplication and addition per token, forwards for the states and backwards for their gradients."""

    @staticmethod
    def forward(context: Any, decay: Tensor, added: Tensor, start: Tensor) -> Tensor:
        states = torch.empty_like(added)
        last = start
        for here, new, out in zip(decay.unbind(1), added.unbind(1), states.unbind(1), strict=True):
            last = torch.addcmul(new, here, last, out=out)
        context.save_for_backward(decay, states, start)
        return states

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decay, states, start = context.saved_tensors
        added = gradients[0].clone()
        for at in range(added.shape[1] - 1, 0, -1):
            added[:, at - 1].addcmul_(added[:, at], decay[:, at])
        before = torch.cat([start[:, None], states[:, :-1]], dim=1)
        return added * before, added, added[:, 0] * decay[:, 0]


def scan(decay: Tensor, added: Tensor, start: Tensor) -> Tensor:
    """Return the states h_t = decay_t h_(t-1) + added_t of several tokens [B, T, ...].

    Args:
        decay: what is left of the state before a token [B, T, ...].
        added: by each token [B, T, ...].
        start: the state before the first of them [B, ...].
    """
    states: Tensor = _Recurrence.apply(decay, added, start)  # type: ignore[no-untyped-call]
    return states


def chunks(numbers: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield a few tokens at a time of tensors [B, T, ...].

    Args:
        numbers: of the states after one token.
        tensors: all of as many tokens.
    """
    length = max(1, AT_ONCE // numbers)
    return zip(*(tensor.split(length, dim=1) for tensor in tensors), strict=True)


def through_layers(
    blocks: nn.ModuleList, hidden: Tensor, cache: Any, shapes: Sequence[StateShape], read: Read
) -> Tensor:
    """Return what the layers make of hidden states [B, T, hidden], and leave their own states in a cache.

    Args:
        blocks: the layers.
        hidden: of the tokens.
        cache: of the tokens before, a kvbench cache, or None where there are none.
        shapes: of a layer's states.
        read: returns what a layer makes of hidden states, its states and which tokens are no padding, and its states
            after the last of them.
    """
    real = None if cache is None else cache.layers[0].real(hidden.shape[1])
    for index, block in enumerate(blocks):
        if cache is None:
            hidden, _ = read(block, hidden, tuple(shape.fresh(len(hidden), hidden.device) for shape in shapes), None)
        else:
            hidden, states = read(block, hidden, cache.layers[index].states, real)
            cache.layers[index].keep(states, hidden.shape[1])
    return hidden


def check_keywords(keywords: Mapping[str, Any]) -> None:
    """Refuse what a model is asked for beyond logits, such as another cache; a mask without padding asks for nothing.

    Raises:
        ValueError: with the names.
    """
    unknown = {name for name, given in keywords.items() if given is not None} - _UNDERSTOOD
    mask = keywords.get("attention_mask")
    if unknown or (mask is not None and not bool(mask.all())):
        raise ValueError(
            f"a recurrent model here does not take {sorted(unknown) or 'a mask of padding'}: build a cache with "
            f"RunShape.prompt_lengths per row, give it as past_key_values, and decode in a loop instead of by generate."
        )


def predictions(hidden: Tensor, head: nn.Module, logits_to_keep: int) -> CausalLMOutput:
    """Return the logits of the last tokens, 0 for all."""
    return CausalLMOutput(logits=head(hidden[:, -logits_to_keep:]))


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that states are kept in: float32, or wider where the model is."""
    return torch.promote_types(dtype, torch.float32)
