"""How large keys and values get, along which directions they and queries lie, and how much the loss depends on them."""

from __future__ import annotations

import torch
from torch import Tensor

from kvbench.cache.codecs.moments import HEADS, Moments, joined
from kvbench.cache.rotary import turned_back
from kvbench.calibration.reading import Report, about, how_much, with_gradients
from kvbench.models.load import Loaded
from kvbench.types import LayerShape, Projection
from kvbench.workloads.source import TokenSource

SAMPLES = 64  # unless the user says otherwise
TOKENS = 512  # of each, or as many as the model reads


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
    count, length = how_much("moments", loaded.view, samples, tokens, usual=(SAMPLES, TOKENS), least=2)
    read, sums = count * length, [_Sums(shape) for shape in loaded.view.layers]
    for index, ids in enumerate(source.windows(count, length)):
        layers = with_gradients(loaded, torch.tensor([ids], device=loaded.view.device))
        for each, seen in zip(sums, layers, strict=True):
            each.add(*seen)
        report((index + 1) / count)
    return Moments(
        **about(name, loaded, source, count, length),
        keys=[(each.keys / read).float() for each in sums],
        values=[(each.values / read).float() for each in sums],
        queries=[(each.queries / read).float() for each in sums],
        largest=[each.largest.float() for each in sums],
        gradients=[(each.gradients / read).float() for each in sums],
    )


class _Sums:
    """What is summed up of a layer, in float64 on the host."""

    def __init__(self, shape: LayerShape) -> None:
        self.shape, heads = shape, joined(shape, HEADS)
        groups, width = shape.kv_heads // heads, heads * shape.key_dim
        self.keys = torch.zeros(groups, width, width, dtype=torch.float64)
        self.values = torch.zeros(groups, heads * shape.value_dim, heads * shape.value_dim, dtype=torch.float64)
        self.queries = torch.zeros(shape.kv_heads, shape.key_dim, shape.key_dim, dtype=torch.float64)
        self.largest = torch.zeros(shape.kv_heads, shape.key_dim, dtype=torch.float64)
        self.gradients = torch.zeros(2, dtype=torch.float64)

    def add(self, query: Tensor, key: Tensor, value: Tensor, *gradients: Tensor) -> None:
        """Take in the queries [1, H, T, D], keys [1, G, T, D] and values of a text, and gradients of the last two."""
        shape = self.shape
        self.largest = torch.maximum(self.largest, key[0].abs().amax(dim=1).double().cpu())
        position = torch.arange(key.shape[2], device=key.device)[None, None]
        bare, asking = (turned_back(rows, position, shape.rotary) for rows in (key, query))
        self.keys += _products(bare, shape.key_projection, len(self.keys))
        self.values += _products(value, shape.value_projection, len(self.values))
        of_heads = _products(asking, None, shape.query_heads)
        self.queries += of_heads.unflatten(0, (shape.kv_heads, -1)).mean(dim=1)
        self.gradients += torch.tensor([float(made.double().square().sum()) for made in gradients])


def _products(entries: Tensor, made: Projection | None, groups: int) -> Tensor:
    rows = entries[0].double().cpu()
    if made is not None and made.bias is not None:
        rows = rows - made.bias.double().cpu()[:, None]
    flat = rows.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2)  # [n, T, h x D]
    made_of: Tensor = flat.mT @ flat
    return made_of
