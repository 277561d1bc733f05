"""A broken part of the core, and the checks that have to fail on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Check = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One thing done wrong.

    Args:
        name: what is wrong.
        patches: what is put in place of the real thing: where, under which name, what.
        killed_by: checks, each of which has to fail.
        error: how they fail.
    """

    name: str
    patches: tuple[tuple[object, str, object], ...]
    killed_by: tuple[Check, ...]
    error: type[Exception] = AssertionError
