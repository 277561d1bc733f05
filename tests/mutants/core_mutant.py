"""A broken part of the core, and the checks that have to fail on it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import pytest

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

    def dies(self, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
        """See the check fail on what is broken."""
        for owner, name, broken in self.patches:
            assert hasattr(owner, name), "the mutant breaks something that is no longer there"
            monkeypatch.setattr(owner, name, broken)
        with pytest.raises(self.error):
            check()


def oracle_of(check: Check) -> Callable[..., None]:
    """Return the oracle behind a check with its arguments."""
    return check.func if isinstance(check, partial) else check


def each_of(mutants: Sequence[Mutant]) -> pytest.MarkDecorator:
    """Return what runs a test for each mutant with each of its checks.

    The suite sees each oracle fail once; `make shipped` on every mutant that it has to fail on.
    """
    named, seen = [], set[Callable[..., None]]()
    for mutant in mutants:
        for check in mutant.killed_by:
            oracle = oracle_of(check)
            marks = pytest.mark.shipped if oracle in seen else ()
            seen.add(oracle)
            named.append(pytest.param(mutant, check, id=f"{mutant.name}: {oracle.__name__}", marks=marks))
    return pytest.mark.parametrize(("mutant", "check"), named)


def seen_to_fail(mutants: Sequence[Mutant]) -> set[Callable[..., None]]:
    """Return the oracles that fail on some mutant."""
    return {oracle_of(check) for mutant in mutants for check in mutant.killed_by}


def oracles_in(module: ModuleType) -> set[Callable[..., None]]:
    """Return the functions of a module that return nothing, and so are there to fail: private ones only help."""
    found = vars(module).items()
    mine = {value for name, value in found if not name.startswith("_") and inspect.isfunction(value)}
    return {each for each in mine if each.__module__ == module.__name__ and each.__annotations__["return"] == "None"}
