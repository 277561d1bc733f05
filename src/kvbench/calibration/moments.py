"""How large keys and values get, along which directions, and how much the loss depends on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.codecs.moments import HEADS, Moments, joined
from kvbench.cache.rotary import turn
from kvbench.calibrated import fingerprint
from kvbench.calibration.watching import forward
from kvbench.models.load import Loaded
from kvbench.types import LayerShape, Projection
from kvbench.workloads.source import TokenSource

SAMPLES = 64  # unless the user says otherwise
TOKENS = 512  # of each, or as many as the model reads

Report = Callable[[float], None]


def moments(name: str, loaded: Loaded, source: TokenSource, *, samples: int, tokens: int, report: Report) -> Moments:
    """Read texts forwards and backwards and return means over their tokens.

    Args:
        name: of the model.
        loaded: the model, switched to the watched attention.
        source: of texts, or of random ids.
        samples: 0 for the usual number.
        tokens: per sample; 0 for the usual number.
        report: told how much is done.

    Raises:
        ValueError: if the samples make no sense.
    """
    count, length = samples or SAMPLES, tokens or min(TOKENS, loaded.view.max_positions)
    if count < 1 or not 2 <= length <= loaded.view.max_positions:
        raise ValueError(
            f"moments need --samples of at least 1 and --tokens from 2 to what the model reads, "
            f"{loaded.view.max_positions}; got {count} and {length}."
        )
    weights = fingerprint(loaded.view)
    assert weights is not None
    sums = [_Sums(shape) for shape in loaded.view.layers]
    for index, ids in enumerate(source.windows(count, length)):
        _read(loaded, torch.tensor([ids], device=loaded.view.device), sums)
        report((index + 1) / count)
    seen = count * length
    return Moments(
        model=name,
        revision=loaded.revision,
        weights=weights,
        seed=source.seed,
        samples=count,
        tokens=length,
        keys=[(each.keys / seen).float() for each in sums],
        values=[(each.values / seen).float() for each in sums],
        largest=[each.largest.float() for each in sums],
        gradients=[(each.gradients / seen).float() for each in sums],
    )


class _Sums:
    """What is summed up of a layer, in float64 on the host."""

    def __init__(self, shape: LayerShape) -> None:
        self.shape, heads = shape, joined(shape, HEADS)
        groups, width = shape.kv_heads // heads, heads * shape.key_dim
        self.keys = torch.zeros(groups, width, width, dtype=torch.float64)
        self.values = torch.zeros(groups, heads * shape.value_dim, heads * shape.value_dim, dtype=torch.float64)
        self.largest = torch.zeros(shape.kv_heads, shape.key_dim, dtype=torch.float64)
        self.gradients = torch.zeros(2, dtype=torch.float64)

    def add(self, key: Tensor, value: Tensor) -> None:
        """Take in the keys and values of a text [1, G, T, D]."""
        shape = self.shape
        self.largest = torch.maximum(self.largest, key[0].abs().amax(dim=1).double().cpu())
        wide = key.to(torch.promote_types(key.dtype, torch.float32))
        if shape.rotary is not None:
            wide = turn(wide, -torch.arange(key.shape[2], device=key.device)[None, None], shape.rotary)
        self.keys += _products(wide, shape.key_projection, len(self.keys))
        self.values += _products(value, shape.value_projection, len(self.values))


def _products(entries: Tensor, made: Projection | None, groups: int) -> Tensor:
    rows = entries[0].double().cpu()
    if made is not None and made.bias is not None:
        rows = rows - made.bias.double().cpu()[:, None]
    flat = rows.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2)  # [n, T, h x D]
    made_of: Tensor = flat.mT @ flat
    return made_of


def _read(loaded: Loaded, ids: Tensor, sums: list[_Sums]) -> None:
    """Add what a text shows [1, T]; what it says of its own next tokens is the loss."""
    sides: dict[int, tuple[Tensor, Tensor]] = {}

    def watch(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int) -> None:
        for side in (key, value):
            if not side.requires_grad:  # nothing before it has a gradient
                side.requires_grad_()
        sides[layer] = (key, value)

    with torch.enable_grad():
        out: Any = forward(loaded.model, ids, watch)
        loss = torch.nn.functional.cross_entropy(out.logits[0, :-1].float(), ids[0, 1:], reduction="sum")
        flat = torch.autograd.grad(loss, [side for layer in range(len(sums)) for side in sides[layer]])
    for layer, each in enumerate(sums):
        key, value = (side.detach() for side in sides[layer])
        each.add(key, value)
        each.gradients += torch.tensor([float(made.double().square().sum()) for made in flat[2 * layer :][:2]])
