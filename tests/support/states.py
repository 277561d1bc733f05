"""Queries, keys and values as a model makes them, before and after rotation: dense attention of one text alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from tests.support.models import attention, inverse_frequency
from tests.support.models import model as model_of

NAME = "states"


@dataclass(frozen=True, kw_only=True)
class States:
    """One layer of one text.

    Args:
        raw_query: before rotation [H, T, D].
        raw_key: before rotation [G, T, D].
        query: [H, T, D].
        key: [G, T, D].
        value: [G, T, D].
        scale: factor of the logits.
        frequency: inverse frequencies of the rotation, None where positions are learned.
        output: projection of each query head's values [H, D, hidden].
    """

    raw_query: Tensor
    raw_key: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    frequency: Tensor | None
    output: Tensor

    @property
    def share(self) -> int:
        """Query heads per KV head."""
        return len(self.query) // len(self.key)

    def members(self, group: int) -> range:
        """Return the query heads of a KV head."""
        return range(group * self.share, (group + 1) * self.share)

    def weights(self, head: int, now: int) -> list[float]:
        """Return the attention of one query over the entries up to it, 0 beyond."""
        keys = self.key[head // self.share]
        paid = torch.softmax(keys[: now + 1] @ self.query[head, now] * self.scale, dim=0)
        return [*paid.tolist(), *([0.0] * (len(keys) - now - 1))]

    def received(self, group: int, at: int, queries: range) -> float:
        """Return the attention an entry receives from so many queries, the mean over the group."""
        return sum(self.weights(head, now)[at] for head in self.members(group) for now in queries) / self.share


_RECORDED: list[list[States]] = []


def rotated(rows: Tensor, at: Tensor, frequency: Tensor | None) -> Tensor:
    """Rotate rows [..., T, D] to positions [T], each pair (i, i + half) as a complex number."""
    if frequency is None:
        return rows
    half = len(frequency)
    angle = at.double()[:, None] * frequency
    pairs = torch.complex(rows[..., :half], rows[..., half : 2 * half]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([pairs.real, pairs.imag, rows[..., 2 * half :]], dim=-1)


def states(model_name: str, text: Tensor) -> list[States]:
    """Return what each layer makes of a text [T]."""
    return _states(model_name, tuple(text.tolist()))


@functools.cache
def _states(model_name: str, text: tuple[int, ...]) -> list[States]:
    model, learned = model_of(model_name), not hasattr(model_of(model_name).base_model, "rotary_emb")
    at = torch.arange(len(text)) * learned  # the attention below rotates on its own
    _RECORDED.append([])
    try:
        with attention(model, NAME):
            model(torch.tensor([text]), use_cache=False, position_ids=at[None])
    finally:
        recorded = _RECORDED.pop()
    return recorded


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float | None = None, **_: Any
) -> tuple[Tensor, None]:
    config: Any = module.config
    frequency = None if config.model_type == "gpt2" else inverse_frequency(config, None)
    at = torch.arange(query.shape[2])
    turned = [rotated(rows[0], at, frequency) for rows in (query, key)]
    made = States(
        raw_query=query[0],
        raw_key=key[0],
        query=turned[0],
        key=turned[1],
        value=value[0],
        scale=scaling if scaling is not None else query.shape[-1] ** -0.5,
        frequency=frequency,
        output=_projection(module, len(query[0])),
    )
    _RECORDED[-1].append(made)
    out = torch.empty_like(query[0])
    for head in range(len(out)):
        for now in range(len(at)):
            out[head, now] = torch.tensor(made.weights(head, now), dtype=torch.float64) @ value[0, head // made.share]
    return out.transpose(0, 1)[None], None


def _projection(module: Any, heads: int) -> Tensor:
    is_linear = hasattr(module, "o_proj")
    rows = module.o_proj.weight.detach().t() if is_linear else module.c_proj.weight.detach()
    width = len(rows) // heads
    return torch.stack([rows[head * width : (head + 1) * width] for head in range(heads)])


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
