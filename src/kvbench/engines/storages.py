"""The bytes of tensors that any object leads to."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def storages(thing: object) -> dict[int, int]:
    """Return the bytes of every tensor storage that an object leads to, by address."""
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors(thing)}


def host_bytes(thing: object, device: torch.device) -> int:
    """Return the bytes of storages in the host's memory, where that is not the device's own.

    Args:
        thing: leads to tensors.
        device: of the model.
    """
    away = [tensor for tensor in tensors(thing) if tensor.device.type == "cpu" != device.type]
    return sum(storages(away).values())


def tensors(thing: object) -> Iterator[Tensor]:
    """Yield every tensor that an object leads to.

    A tensor that packs others (as quanto's) has no storage of its own, and leads to theirs.
    """
    seen: dict[int, object] = {}  # kept alive, so that no two of them have one id
    waiting = [thing]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, type):
            continue
        seen[id(thing)] = thing
        if isinstance(thing, Tensor) and not is_traceable_wrapper_subclass(thing):
            yield thing
        if isinstance(thing, dict):
            waiting += thing.values()
        elif isinstance(thing, list | tuple):
            waiting += thing
        waiting += vars(thing).values() if hasattr(thing, "__dict__") else ()
