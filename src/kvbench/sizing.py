"""The sizes that a plan is made of, read from a network that has no weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kvbench.models.load import ModelError, skeleton
from kvbench.models.spec import ModelSpec
from kvbench.models.view import view_of
from kvbench.planning.network import Network

_NOTHING = ("aten::_unsafe_view", "aten::arange", "aten::zeros", "aten::empty")  # neither views nor work


def network_of(spec: ModelSpec) -> Network:
    """Return the sizes of a model, without loading it.

    Args:
        spec: which.

    Raises:
        ValueError: if it is recurrent, or if its layers differ in more than their windows.
    """
    try:
        model = skeleton(spec)
    except ModelError as error:
        raise ValueError(str(error)) from error
    view = view_of(model)
    layers = view.layers
    if view.is_recurrent:
        raise ValueError(f"model={spec.name} is recurrent and keeps nothing to be placed; choose another model=.")
    shapes = {(layer.query_heads, layer.kv_heads, layer.key_dim, layer.value_dim) for layer in layers}
    if len(shapes) > 1:
        raise ValueError(
            f"model={spec.name} has layers of different shapes, which no plan knows; choose another model=."
        )
    ((query_heads, kv_heads, key_dim, value_dim),) = shapes
    number_bytes = getattr(torch, spec.dtype).itemsize
    return Network(
        windows=tuple(layer.window for layer in layers),
        hidden=view.sizes.hidden,
        intermediate=view.sizes.intermediate,
        vocabulary=view.sizes.vocabulary,
        query_heads=query_heads,
        kv_heads=kv_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        number_bytes=number_bytes,
        weights_bytes=sum(parameter.numel() for parameter in model.parameters()) * number_bytes,
        read_parameters=_read_parameters(model),
        launches=_launches(model),
    )


def _read_parameters(model: nn.Module) -> int:
    """Return the weights that a token is multiplied with: all but tables of which it reads a row."""
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    looked_up = sum(table.numel() for table in tables if table is not head.weight)
    return sum(parameter.numel() for parameter in model.parameters()) - looked_up


class _Launches(TorchDispatchMode):
    """Counts the operations that a device is given; attention in plain steps, as a device without memory takes it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        self.count += not (function.is_view or function.name().partition(".")[0] in _NOTHING)
        return function(*arguments, **(keywords or {}))


def _launches(model: nn.Module) -> int:
    """Return the operations of a decode step."""
    with torch.no_grad():
        return count_launches(lambda: model(torch.zeros(1, 1, dtype=torch.long, device="meta"), use_cache=True))


def count_launches(work: Callable[[], object]) -> int:
    """Return the operations that work gives a device; those of other threads are not seen."""
    with _Launches() as seen:
        work()
    return int(seen.count)
