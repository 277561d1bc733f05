"""Mistakes that others made, one test each: what was wrong, and that it is not so here."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from kvbench.engines.arm import Arm, PrefillArm
from kvbench.engines.eager import Eager
from kvbench.models.view import view_of
from kvbench.results.table import print_table
from kvbench.strategies.base import CacheStrategy
from kvbench.types import DECODE, RunShape
from tests.results.factory import baseline, frame, row
from tests.support import checks, generic, parts, scores, storage, toy
from tests.support.drive import drive, positions, slots_of
from tests.support.models import LAYERS, attention, ids, model
from tests.support.scores import Spy
from tests.support.strategies import strategy

PROMPT, NEW, BUDGET = checks.PROMPT, checks.NEW, checks.BUDGET


def test_01_rows_beside_an_entry_move_with_it() -> None:
    layer = toy.small_layer(strategy("h2o"))
    toy.feed_prompt(layer)
    for step in range(6, 8):
        layer.attend(toy.query_of({0: 0.4, 1: 0.6}), toy.key_of(step), toy.key_of(step), 1.0, DECODE)
        slots = slots_of(layer)
        directions = slots.keys.read(slots.filled)[0, 0].argmax(dim=-1)
        assert directions.tolist() == slots.position[0, 0, : slots.filled].tolist()


def test_02_the_length_of_a_cache_is_what_it_has_seen() -> None:
    checks.positions_are_true("snapkv", "llama_gqa")


@pytest.mark.parametrize("name", ["snapkv", "pyramidkv", "adakv"])
def test_03_04_05_many_tokens_after_pruning_see_what_each_layer_and_head_holds(name: str) -> None:
    checks.many_tokens_equal_one_by_one(name, "llama_gqa")


def test_06_heads_of_a_group_are_stored_once() -> None:
    cache = drive(model("llama_gqa"), strategy("snapkv", tokens=BUDGET), ids(1, 1, PROMPT), checks.uniform(new=0)).cache
    assert [slots_of(layer).keys.read(1).shape[1] for layer in cache.layers] == [2] * LAYERS


@pytest.mark.parametrize("name", ["snapkv", "adakv", "knorm", "lagkv"])
def test_07_what_is_freed_is_freed(name: str) -> None:
    cache = drive(model("llama_gqa"), strategy(name, tokens=BUDGET), ids(1, 1, PROMPT), checks.uniform(new=0)).cache
    storage.storages_are_exact_and_reported(cache)


def test_08_sums_are_kept_in_float32() -> None:
    parts.sums_are_not_rounded_to_the_model()


def test_09_shares_are_fractions_not_floats() -> None:
    storage.fractions_are_exact()


def test_10_the_recent_run_has_no_hole() -> None:
    checks.protected_entries_stay("h2o", "llama_gqa", sinks=0, recent=5)


def test_11_kept_entries_are_in_order_of_position() -> None:
    cache = drive(model("llama_gqa"), strategy("knorm", tokens=BUDGET), ids(1, 1, PROMPT), checks.uniform(new=0)).cache
    for layer in cache.layers:
        held = slots_of(layer).position[0, :, :BUDGET]
        assert torch.equal(held, held.sort(dim=-1).values)


@pytest.mark.parametrize("name", ["h2o", "scissorhands", "d2o", "fixed_size"])
def test_12_nothing_is_left_of_an_earlier_sequence(name: str) -> None:
    checks.second_sequence_is_fresh(name, "llama_gqa")


@pytest.mark.parametrize("name", ["snapkv", "adakv", "pyramidkv", "headkv", "cake"])
def test_13_14_budgets_hold_protected_entries_and_add_up(name: str) -> None:
    generic.budget_is_used_exactly(name, "llama_gqa")


def test_15_weights_are_of_all_entries() -> None:
    scores.scores_equal_eager_attention("snapkv", "llama_gqa")


@pytest.mark.parametrize("name", ["snapkv", "keydiff", "expected_attention", "adakv"])
def test_16_padding_counts_for_nothing(name: str) -> None:
    generic.padded_rows_equal_rows_alone(name, "llama_gqa")


def test_17_runs_that_saw_the_question_are_not_compared_with_runs_that_did_not() -> None:
    unaware, aware = ([row("h2o", query_aware=saw), baseline(query_aware=saw)] for saw in (False, True))
    both = frame(unaware, aware)
    out = io.StringIO()
    print_table(both, Console(file=out, width=200))
    assert out.getvalue().count("h2o 25%") == 2
    assert out.getvalue().count("strategy  ") == 2, "one table for both"


@pytest.mark.parametrize("name", ["adakv", "headkv", "snapkv", "h2o"])
def test_18_a_quarter_of_the_entries_is_a_quarter_of_the_bytes(name: str) -> None:
    run = RunShape(prompt_lengths=(96,), new_tokens=0)
    made = drive(model("llama_gqa"), strategy(name, tokens=24), ids(1, 1, 96), run).cache.allocated_bytes()
    full = drive(model("llama_gqa"), strategy("baseline"), ids(1, 1, 96), run).cache.allocated_bytes()
    assert made < 0.3 * full


def test_19_short_prompts_are_kept_whole_and_small_budgets_refused() -> None:
    checks.budget_above_length_is_baseline("snapkv", "llama_gqa")
    short = drive(model("llama_gqa"), strategy("snapkv", tokens=BUDGET), ids(1, 1, 3), checks.uniform(3, 0))
    assert positions(short.held[0][0][0]) == [[0, 1, 2]] * 2
    with pytest.raises(ValueError, match=r"below the 7 protected ones.*strategy\.selector\.num_sink"):
        strategy("h2o", "selector.num_sink=4", "selector.num_recent=3", tokens=5).build(
            view_of(model("llama_gqa")), checks.uniform()
        )


def test_20_what_appends_without_bound_is_counted_at_the_end() -> None:
    made = strategy("snapkv", tokens=BUDGET)
    used: list[int] = []
    drive(
        model("llama_gqa"),
        made,
        ids(1, 1, PROMPT + NEW),
        checks.uniform(),
        watch=lambda cache, seen: used.append(cache.used_bytes()),
    )
    assert used[-1] * BUDGET == used[0] * (BUDGET + NEW)
    assert not made.keeps_budget


def test_21_scores_come_from_the_queries_that_attention_uses() -> None:
    checks.equals_dense_attention_under_its_mask("snapkv", "qwen3")


def test_22_a_summary_is_never_summed_up_again() -> None:
    made = strategy("fixed_size", tokens=BUDGET)
    cache = drive(model("llama_gqa"), made, ids(1, 1, PROMPT + NEW), checks.uniform()).cache
    for layer in cache.layers:
        slots = slots_of(layer)
        assert slots.log_weight is not None
        left = PROMPT + NEW - (BUDGET - 1)  # the newest entry was attended to on top of the budget and one has left
        stands_for = slots.log_weight[:, :, 0].exp()
        torch.testing.assert_close(stands_for, torch.full_like(stands_for, left))


def test_23_layers_and_heads_choose_for_themselves() -> None:
    driven = drive(model("llama_gqa"), strategy("h2o", tokens=BUDGET), ids(1, 1, PROMPT + NEW), checks.uniform())
    sets = {tuple(kept) for held in driven.held[-1] for kept in positions(held[0])}
    assert len(sets) == 2 * LAYERS


def test_24_scoring_is_part_of_what_is_timed() -> None:
    made = strategy("snapkv", tokens=BUDGET)
    spy = Spy(made.scorer)
    network: CacheStrategy = replace(made, scorer=spy)
    with attention(model("llama_gqa"), "kvbench") as switched:
        arm = Arm(
            name="strategy", model=switched, view=view_of(switched), strategy=network, engine=Eager(prefill_chunk=0)
        )
        timed = PrefillArm(arm, checks.uniform(new=0), ids(1, 1, PROMPT))
        timed.restore()
        assert not spy.noted, "scored before the clock runs"
        timed.step()
    assert sorted(spy.noted) == list(range(LAYERS))
