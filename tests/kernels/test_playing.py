"""What C++ does again is what torch did; what it does not know, torch does again."""

from __future__ import annotations

import pytest

from kvbench.kernels import compiling
from tests.mutants.core_mutant import Check, Mutant, each_of
from tests.mutants.playing import MUTANTS
from tests.support.playing import CASES, again_is_as_before

pytestmark = pytest.mark.skipif(compiling.compiler() is None, reason="no C++ compiler")


@pytest.mark.parametrize("name", CASES)
def test_operations_done_again_are_torch_s(name: str) -> None:
    again_is_as_before(name)


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)
