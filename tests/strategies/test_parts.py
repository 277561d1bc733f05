"""Selectors and lots against naive loops."""

from __future__ import annotations

from kvbench.configuration import build_group, compose, resolved
from tests.support import parts
from tests.support.strategies import composed


def test_what_is_kept_is_what_sorting_leaves() -> None:
    parts.keep_equals_sorting()


def test_the_victim_is_the_least_of_those_that_may_leave() -> None:
    parts.victim_is_the_least_unprotected()


def test_lots_are_fair_and_reproducible() -> None:
    parts.lots_are_fair()


def test_values_set_after_composing_are_those_of_the_command_line() -> None:
    chosen = ("strategy/trigger=every_k", "strategy/scorer=window_attention")
    values = ("trigger.period=5", "scorer.window=3", "budget.unit=tokens", "budget.amount=9", "budget.skip_layers=[0]")
    typed = compose(["strategy=h2o", *chosen, *(f"strategy.{value}" for value in values)])
    assert composed("h2o", *values, *chosen) == build_group(resolved(typed)["strategy"], "strategy")
    assert composed("h2o", *values, *chosen) != composed("h2o", *chosen)
