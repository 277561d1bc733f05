"""Scissorhands counts, Keyformer adds noise, NACL draws lots: each against plain loops, and broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from kvbench.strategies.selection.noisy import NoisyMass
from kvbench.strategies.selection.persistence import Persistence
from kvbench.strategies.selection.proxy import ProxyAttention, TopAndSampled
from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.mutants.dynamic import MUTANTS
from tests.support import dynamic
from tests.support.models import MAIN

on_main = pytest.mark.parametrize("model_name", MAIN)
in_pieces = pytest.mark.parametrize("chunks", [(), (7, 1, 13, 3)], ids=["whole", "chunks"])


# -- Scissorhands -----------------------------------------------------------------------------------------------------


@on_main
@pytest.mark.parametrize(("history", "period"), [(10, 4), (3, 4), (400, 4), (10, 1)])
def test_scissorhands_is_dense_attention_under_counts_of_lost_steps(model_name: str, history: int, period: int) -> None:
    overrides = (f"scorer.history={history}", f"trigger.period={period}")
    dynamic.equals_the_slow_route("scissorhands", model_name, overrides, history=history, period=period)


@in_pieces
def test_scissorhands_treats_padded_rows_as_rows_alone(chunks: tuple[int, ...]) -> None:
    dynamic.rows_equal_the_slow_route("scissorhands", "llama_gqa", chunks)


def test_lost_steps_choose_from_the_prompt() -> None:
    dynamic.lost_steps_choose_from_the_prompt()


def test_one_spike_counts_once() -> None:
    dynamic.one_spike_counts_once()


def test_an_entry_above_average_never_leaves() -> None:
    dynamic.above_average_never_leaves()


@pytest.mark.parametrize("history", [4, 8, 10, 17])
def test_the_ring_forgets(history: int) -> None:
    dynamic.the_ring_forgets(history)


@pytest.mark.parametrize("history", [5, 8, 20, 400])
def test_counts_have_the_bits_of_their_ring(history: int) -> None:
    dynamic.counts_have_the_bits_of_their_ring("llama_gqa", history)


def test_of_equal_counts_the_oldest_leave() -> None:
    dynamic.equal_counts_let_the_oldest_go()


# -- Keyformer --------------------------------------------------------------------------------------------------------


@on_main
def test_keyformer_without_noise_is_h2o_bit_for_bit(model_name: str) -> None:
    dynamic.without_noise_it_is_h2o(model_name)


@on_main
def test_keyformer_is_dense_attention_under_noisy_sums(model_name: str) -> None:
    dynamic.equals_the_slow_route("keyformer", model_name)


def test_noise_factor_temperatures_and_seed_are_those_of_plain_loops() -> None:
    overrides = ("scorer.seed=3", "scorer.noise=0.5", "scorer.tau_init=0.7", "scorer.tau_end=3", "trigger.period=1")
    changes = {"seed": 3, "noise": 0.5, "taus": (0.7, 3.0, 8), "period": 1}
    dynamic.equals_the_slow_route("keyformer", "llama_gqa", overrides, **changes)


@in_pieces
def test_keyformer_treats_padded_rows_as_rows_alone(chunks: tuple[int, ...]) -> None:
    dynamic.rows_equal_the_slow_route("keyformer", "llama_gqa", chunks)


@on_main
def test_noisy_sums_are_conserved(model_name: str) -> None:
    dynamic.noisy_sums_are_conserved(model_name)


def test_temperature_flattens() -> None:
    dynamic.temperature_flattens()


def test_noise_does_not_depend_on_blocks_or_chunks() -> None:
    dynamic.noise_ignores_blocks("llama_gqa")


def test_noise_is_gumbel() -> None:
    dynamic.noise_is_gumbel()


# -- NACL -------------------------------------------------------------------------------------------------------------


@on_main
@pytest.mark.parametrize("share", [0.35, 1.0])
def test_nacl_keeps_what_a_plain_loop_keeps(model_name: str, share: float) -> None:
    drawn = {0.35: 4, 1.0: 8}[share]  # of 12 entries, 4 of which are protected
    dynamic.equals_the_slow_route("nacl", model_name, (f"selector.sampled_share={share}",), sampled=drawn)


@in_pieces
def test_nacl_treats_padded_rows_as_rows_alone(chunks: tuple[int, ...]) -> None:
    dynamic.rows_equal_the_slow_route("nacl", "llama_gqa", chunks)


@on_main
def test_nacl_without_lots_is_snapkv_without_pooling(model_name: str) -> None:
    dynamic.without_lots_it_is_snapkv(model_name)


def test_lots_are_drawn_with_the_softmax_of_the_scores() -> None:
    dynamic.drawn_with_the_softmax()


def test_lots_differ_between_heads_layers_and_seeds() -> None:
    dynamic.lots_differ()


def test_each_layer_draws_its_own_lots() -> None:
    dynamic.layers_draw_their_own("llama_gqa")


@pytest.mark.parametrize(("tokens", "voters"), [(1, 1), (99, 1), (100, 1), (200, 2), (700, 7), (299, 2)])
def test_one_percent_of_the_prompt_votes(tokens: int, voters: int) -> None:
    assert ProxyAttention(share=0.01).voters(tokens) == voters


# -- numbers that mean nothing ----------------------------------------------------------------------------------------

PLAIN: dict[str, Any] = {"seed": 0, "noise": 1.0, "tau_init": 1.0, "tau_end": 2.0, "tau_steps": 4}
FREE: dict[str, Any] = {"num_sink": 0, "num_recent": 0, "recent_share": 0.0, "sampled_share": 0.0, "seed": 0}


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (partial(Persistence, history=0), "strategy.scorer.history must be at least 1 step; got 0"),
        (partial(NoisyMass, **PLAIN | {"noise": -1.0}), "strategy.scorer.noise must be 0 or more; got -1.0"),
        (partial(NoisyMass, **PLAIN | {"tau_end": 0.0}), "strategy.scorer.tau_end must be above 0; got 1.0 and 0.0"),
        (partial(NoisyMass, **PLAIN | {"tau_init": -2.0}), "must be above 0; got -2.0 and 2.0"),
        (partial(NoisyMass, **PLAIN | {"tau_steps": 0}), "strategy.scorer.tau_steps must be at least 1; got 0"),
        (partial(ProxyAttention, share=0.0), "strategy.scorer.share must be above 0 and at most 1; got 0.0"),
        (partial(ProxyAttention, share=1.5), "strategy.scorer.share must be above 0 and at most 1; got 1.5"),
        (partial(TopAndSampled, **FREE | {"sampled_share": 2.0}), "sampled_share must be between 0 and 1; got 2.0"),
        (partial(TopAndSampled, **FREE | {"num_sink": -1}), "strategy.selector needs num_sink >= 0"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(make: Check, text: str) -> None:
    with pytest.raises(ValueError, match=text.replace(".", r"\.")):
        make()


# -- the oracles can fail ---------------------------------------------------------------------------------------------


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


ORACLES: tuple[Callable[..., None], ...] = (
    dynamic.equals_the_slow_route,
    dynamic.rows_equal_the_slow_route,
    dynamic.lost_steps_choose_from_the_prompt,
    dynamic.one_spike_counts_once,
    dynamic.above_average_never_leaves,
    dynamic.the_ring_forgets,
    dynamic.counts_have_the_bits_of_their_ring,
    dynamic.equal_counts_let_the_oldest_go,
    dynamic.without_noise_it_is_h2o,
    dynamic.noisy_sums_are_conserved,
    dynamic.temperature_flattens,
    dynamic.noise_ignores_blocks,
    dynamic.noise_is_gumbel,
    dynamic.without_lots_it_is_snapkv,
    dynamic.drawn_with_the_softmax,
    dynamic.lots_differ,
    dynamic.layers_draw_their_own,
)


def test_every_oracle_is_seen_to_fail() -> None:
    assert set(ORACLES) - seen_to_fail(MUTANTS) == set()
