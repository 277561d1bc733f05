"""Calls of kernels that are told addresses, which torch does not see: whoever notes a step is told of them here."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Call:
    """A kernel, and all that it is told.

    Args:
        kernel: takes the address of what is given.
        given: numbers, and the addresses that are read and written.
        kept: what these are of.
    """

    kernel: Callable[[int], object]
    given: ctypes.Structure
    kept: tuple[object, ...]

    def __call__(self) -> None:
        """Call it."""
        self.kernel(ctypes.addressof(self.given))


_listeners: list[Callable[[Call], None]] = []


def call(kernel: Callable[[int], object], given: ctypes.Structure, *kept: object) -> None:
    """Call a kernel that reads and writes the tensors it is given, and nothing else that changes."""
    kernel(ctypes.addressof(given))
    for listener in _listeners:
        listener(Call(kernel, given, kept))


@contextmanager
def listening(listener: Callable[[Call], None]) -> Iterator[None]:
    """Tell of every kernel called meanwhile, as what calls it again."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
