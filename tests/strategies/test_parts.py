"""Selectors and lots against naive loops."""

from __future__ import annotations

from tests.support import parts


def test_what_is_kept_is_what_sorting_leaves() -> None:
    parts.keep_equals_sorting()


def test_the_victim_is_the_least_of_those_that_may_leave() -> None:
    parts.victim_is_the_least_unprotected()


def test_lots_are_fair_and_reproducible() -> None:
    parts.lots_are_fair()
