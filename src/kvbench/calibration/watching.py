"""A plain forward pass of which queries, keys and values are seen, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from kvbench.kernels.attend import attend_causal, attend_prompt

ATTENTION = "kvbench_watched"  # name of the attention function models are switched to
Watch = Callable[[int, Tensor, Tensor, Tensor, float, int], Tensor | None]

_watch: ContextVar[Watch] = ContextVar("watch")


def forward(model: nn.Module, ids: Tensor, watch: Watch) -> Any:
    """Run ids through a model that is switched to `ATTENTION`, and return what it returns.

    Args:
        model: in evaluation mode.
        ids: [B, T].
        watch: called with layer, queries [B, H, T, D] and keys [B, G, T, D], rotated, values, scale and the window; an
            output [B, H, T, D_v] that it returns takes the place of attention's.
    """
    token = _watch.set(watch)
    try:
        return model(ids, use_cache=False)
    finally:
        _watch.reset(token)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **keywords: Any,
) -> tuple[Tensor, None]:
    """Attend causally, and show queries, keys and values to who watches."""
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    window = sliding_window or 0
    out = _watch.get()(int(module.layer_idx), query, key, value, scale, window)  # type: ignore[arg-type]
    if out is None:
        out = attend(query, key, value, scale, window)
    return out.transpose(1, 2).contiguous(), None


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int) -> Tensor:
    """Return the output [B, H, T, D_v] of the last T queries of causal attention, in a window; 0 for none.

    Args:
        query: [B, H, T, D].
        key: [B, G, m, D].
        value: [B, G, m, D_v].
        scale: factor of the logits.
        window: tokens that a query sees; 0 for all before it.
    """
    tokens, entries = query.shape[2], key.shape[2]
    if tokens == entries and (window == 0 or tokens <= window):
        return attend_causal(query, key, value, scale)
    at = torch.arange(entries, device=query.device).expand(len(query), -1)
    last = at[:, entries - tokens :]
    return attend_prompt(query, key, value, scale, position=at[:, None], query_position=last, window=window)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)
