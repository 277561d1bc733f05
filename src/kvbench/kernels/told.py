"""Calls of kernels that are told addresses, which torch does not see: whoever notes a step is told of them here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

_listeners: list[Callable[[Callable[[], object]], None]] = []


def call(kernel: Callable[..., object], *given: Any) -> None:
    """Call a kernel that reads and writes the tensors it is given, and nothing else that changes."""
    kernel(*given)
    for listener in _listeners:
        listener(partial(kernel, *given))


@contextmanager
def listening(listener: Callable[[Callable[[], object]], None]) -> Iterator[None]:
    """Tell of every kernel called meanwhile, as what calls it again."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
