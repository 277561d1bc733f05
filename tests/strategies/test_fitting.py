"""The host's share of a cache, fitted to the device's memory."""

from __future__ import annotations

import pytest

from tests.mutants.core_mutant import Check, Mutant, each_of, oracles_in, seen_to_fail
from tests.mutants.fitting import MUTANTS
from tests.support import fitting

ROWS, THERE = "placement.axis=batch", "placement.attend=host"


@pytest.mark.parametrize("codec", ["dense", "kivi4"])
def test_the_host_has_the_least_share_with_which_there_is_room(codec: str) -> None:
    fitting.the_least_share_with_which_there_is_room(codec=codec)


@pytest.mark.parametrize("where", [(THERE,), (ROWS, THERE)])
def test_rows_and_halves_are_fitted_too(where: tuple[str, ...]) -> None:
    fitting.the_least_share_with_which_there_is_room(*where, rows=8)


def test_what_fits_stays() -> None:
    fitting.what_fits_stays()


@pytest.mark.parametrize("where", [(), ("placement.disk=0.25",)])
def test_what_is_said_to_be_needed_is_enough(where: tuple[str, ...]) -> None:
    fitting.what_is_said_to_be_needed_is_enough(*where)


def test_rows_say_what_was_chosen() -> None:
    fitting.rows_say_what_was_chosen()


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert not oracles_in(fitting) - seen_to_fail(MUTANTS)
