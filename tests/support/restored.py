"""The slow truth of pairs of layers: plain loops over vectors, and dense attention to what these restore."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from kvbench.strategies.layout.paired import Paired
from tests.support import models
from tests.support.models import attention

NAME = "reads_restored"


def restored(lower: Tensor, upper: Tensor, layout: Paired) -> tuple[Tensor, Tensor, list[list[int]]]:
    """Return what both layers' vectors [G, n, D] of one row are after merging, and the tokens retained per head."""
    heads, tokens, _ = lower.shape
    if layout.granularity == "token":  # one long vector per token
        a, b, kept = restored(joined(lower), joined(upper), replace(layout, granularity="head"))
        return _parted(a, heads), _parted(b, heads), kept * heads
    count = min(tokens, max(math.ceil(Fraction(str(layout.retained_share)) * tokens), layout.num_sink))
    first, second, retained = lower.clone(), upper.clone(), []
    for head in range(heads):
        angles = []
        for at in range(tokens):
            one, other, angle = _slerp(lower[head, at].tolist(), upper[head, at].tolist(), layout.blend)
            first[head, at], second[head, at] = torch.tensor([one, other], dtype=lower.dtype)
            angles.append(math.inf if at < layout.num_sink else angle)
        keep = sorted(range(tokens), key=lambda at: (-angles[at], -at))[:count]
        for at in keep:
            first[head, at], second[head, at] = lower[head, at], upper[head, at]
        retained.append(sorted(keep))
    return first, second, retained


def joined(vectors: Tensor) -> Tensor:
    """Return the heads' vectors [G, n, D] of a token as one [1, n, G D]."""
    return vectors.transpose(0, 1).reshape(1, vectors.shape[1], -1)


def _parted(vectors: Tensor, heads: int) -> Tensor:
    return vectors[0].reshape(vectors.shape[1], heads, -1).transpose(0, 1)


def _slerp(a: list[float], b: list[float], blend: float) -> tuple[list[float], list[float], float]:
    """Return both vectors turned to one direction between theirs, and the angle between them."""
    long_a, long_b = math.hypot(*a), math.hypot(*b)
    u, v = [x / long_a for x in a], [x / long_b for x in b]
    angle = math.acos(max(-1.0, min(1.0, sum(x * y for x, y in zip(u, v, strict=True)))))
    near, far = math.sin((1 - blend) * angle) / math.sin(angle), math.sin(blend * angle) / math.sin(angle)
    direction = [near * x + far * y for x, y in zip(u, v, strict=True)]
    return [x * long_a for x in direction], [x * long_b for x in direction], angle


@dataclass(kw_only=True)
class Restoring:
    """One forward pass that reads a prompt as it would be restored.

    Args:
        prompt: tokens whose attention is dense.
        instead: per layer the keys and values [G, n, D] that later tokens read in place of the prompt's.
        noted: per layer the keys and values [G, T, D] the model made.
    """

    prompt: int
    instead: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    noted: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


_PASSES: list[Restoring] = []


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **more: Any
) -> tuple[Tensor, None]:
    made, layer = _PASSES[-1], module.layer_idx
    assert isinstance(layer, int)
    made.noted[layer] = key[0], value[0]
    scale = more.get("scaling") or query.shape[-1] ** -0.5
    others = [t[0].clone() for t in (key, value)]
    for mine, restored in zip(others, made.instead.get(layer, ()), strict=False):
        mine[:, : made.prompt] = restored
    group, out = query.shape[1] // key.shape[1], torch.zeros_like(query)
    for now in range(query.shape[2]):
        keys, values = others if now >= made.prompt else (key[0], value[0])
        for head in range(query.shape[1]):
            logits = keys[head // group, : now + 1] @ query[0, head, now] * scale
            out[0, head, now] = torch.softmax(logits, dim=0) @ values[head // group, : now + 1]
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


def forward(network: PreTrainedModel, tokens: Tensor, made: Restoring) -> Tensor:
    """Return the logits of one row of ids [1, T]."""
    _PASSES.append(made)
    try:
        with attention(network, NAME):
            logits: Tensor = network(tokens, use_cache=False).logits
    finally:
        _PASSES.pop()
    return logits


def by_restoring(network: PreTrainedModel, tokens: Tensor, prompt: int, layout: Paired, lower: Sequence[int]) -> Tensor:
    """Return the logits of one row of ids [1, T], reading restored keys and values of pairs of layers."""
    read = Restoring(prompt=prompt)
    forward(network, tokens[:, :prompt], read)
    made = Restoring(prompt=prompt)
    for layer in lower:
        pairs = [restored(*both, layout)[:2] for both in zip(read.noted[layer], read.noted[layer + 1], strict=True)]
        for which in (0, 1):
            made.instead[layer + which] = pairs[0][which], pairs[1][which]
    return forward(network, tokens, made)


@functools.cache
def deep_model() -> PreTrainedModel:
    """Return a Llama of five layers, of which the last finds no partner."""
    before = torch.random.get_rng_state()
    torch.manual_seed(5)
    made: Any = LlamaForCausalLM(LlamaConfig(**models._sizes(num_hidden_layers=5))).double().eval()
    made.requires_grad_(False)
    models._scale(made)
    torch.random.set_rng_state(before)
    network: PreTrainedModel = made
    return network
