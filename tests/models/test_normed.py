"""Norms of a token per row are what the model's are, in fewer operations."""

from __future__ import annotations

import pytest

from tests.mutants.core_mutant import Check, Mutant, each_of
from tests.mutants.normed import MUTANTS
from tests.support import normed as checks


def test_a_token_is_divided_by_its_root() -> None:
    checks.a_token_is_divided_by_its_root()


def test_all_else_is_as_it_was() -> None:
    checks.all_else_is_as_it_was()


def test_the_last_code_is_what_runs() -> None:
    checks.the_last_code_is_what_runs()


@each_of(MUTANTS)
def test_checks_fail_on_what_is_broken(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)
