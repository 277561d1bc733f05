"""LoRC: entries as coordinates along the main directions of the weights that make them."""

from __future__ import annotations

import pytest

from kvbench.configuration import ConfigError
from kvbench.models.view import view_of
from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.mutants.latents import MUTANTS
from tests.support import latents
from tests.support.checks import uniform
from tests.support.models import MAIN, model
from tests.support.strategies import composed, strategy

on_main = pytest.mark.parametrize("model_name", MAIN)


@pytest.mark.parametrize("name", ["lorc", "lorc_fp16"])
@on_main
def test_a_full_rank_is_the_baseline(name: str, model_name: str) -> None:
    latents.a_full_rank_is_the_baseline(name, model_name)


@on_main
def test_coordinates_lose_no_more_than_the_next_singular_value(model_name: str) -> None:
    latents.coordinates_lose_no_more_than_the_next_singular_value(model_name)


@on_main
def test_errors_fall_with_the_rank(model_name: str) -> None:
    latents.errors_fall_with_the_rank(model_name)


@on_main
def test_going_to_the_coordinates_is_restoring(model_name: str) -> None:
    latents.going_to_the_coordinates_is_restoring(model_name)


@pytest.mark.parametrize("turned", [8, 6])
def test_queries_turn_as_keys_do(turned: int) -> None:
    latents.queries_turn_as_keys_do(turned)


def test_ranks_follow_the_paper() -> None:
    latents.ranks_follow_the_paper()


def test_a_step_needs_little_room() -> None:
    latents.a_step_needs_little_room()


def test_two_names_are_one_method() -> None:
    assert strategy("lorc") == strategy("lorc_8bit")


def test_heads_that_differ_are_refused() -> None:
    for name in ("snapkv", "headkv"):
        with pytest.raises(ConfigError, match="writes the heads of a token together"):
            composed(name, "strategy/codec=lorc")
    assert composed("attention_sink", "strategy/codec=lorc", "strategy/position=original").saving == "packed"


def test_keys_that_are_no_projection_are_refused() -> None:
    reason = strategy("lorc").unsupported(view_of(model("qwen3")), uniform())
    assert reason is not None
    assert "a projection of hidden states, and those of layer 0 are not" in reason


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert {
        latents.a_full_rank_is_the_baseline,
        latents.coordinates_lose_no_more_than_the_next_singular_value,
        latents.errors_fall_with_the_rank,
        latents.going_to_the_coordinates_is_restoring,
        latents.queries_turn_as_keys_do,
        latents.ranks_follow_the_paper,
        latents.a_step_needs_little_room,
    } == seen_to_fail(MUTANTS)
