"""Directions that keys and queries share, and how many of them each side keeps."""

from __future__ import annotations

import pytest

from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.mutants.eigen import MUTANTS
from tests.support import eigen
from tests.support.models import MAIN


@pytest.mark.parametrize("model_name", MAIN)
def test_directions_are_those_of_stacked_rows(model_name: str) -> None:
    eigen.directions_are_those_of_stacked_rows(model_name)


def test_ranks_are_those_of_one_share() -> None:
    eigen.ranks_are_those_of_one_share()


def test_queries_help() -> None:
    eigen.queries_help()


def test_latents_take_what_their_ranks_say() -> None:
    eigen.latents_take_what_their_ranks_say()


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert {
        eigen.directions_are_those_of_stacked_rows,
        eigen.ranks_are_those_of_one_share,
        eigen.queries_help,
        eigen.latents_take_what_their_ranks_say,
    } == seen_to_fail(MUTANTS)
