"""Methods that treat heads differently: HeadKV, DuoAttention, RazorAttention, FastGen; and the scores they go by."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvbench import calibrated
from kvbench.configuration import ConfigError
from kvbench.models.view import view_of
from kvbench.types import RunShape
from tests.mutants import head_scores
from tests.mutants import heads as mutants
from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.support import calibrating, head_layers, heads
from tests.support.checks import uniform
from tests.support.models import MAIN, model
from tests.support.strategies import strategy

MUTANTS = (*mutants.MUTANTS, *head_scores.MUTANTS)
each_main_model = pytest.mark.parametrize("name", MAIN)


# -- HeadKV ---------------------------------------------------------------------------------------------------------


def test_four_heads_share_a_pool_as_worked_out() -> None:
    heads.the_worked_pool()


def test_the_pool_is_exact() -> None:
    heads.the_pool_is_exact()


def test_headkv_with_uniform_scores_is_snapkv_bit_for_bit() -> None:
    heads.uniform_scores_are_snapkv()


@each_main_model
def test_headkv_equals_dense_attention_per_head(name: str) -> None:
    heads.headkv_equals_dense_attention_per_head(name)


# -- DuoAttention ---------------------------------------------------------------------------------------------------


def test_gates_choose_heads() -> None:
    heads.gates_choose_heads()


@each_main_model
def test_streaming_heads_keep_sinks_and_recent_tokens(name: str) -> None:
    heads.streaming_heads_keep_sinks_and_recent(name)


def test_streaming_heads_may_keep_a_part_of_the_prompt() -> None:
    heads.streams_follow_the_prompt()


@each_main_model
def test_all_gates_open_is_the_full_cache(name: str) -> None:
    heads.all_gates_open_is_the_full_cache(name)


@each_main_model
def test_all_gates_shut_is_sinks_and_recent(name: str) -> None:
    heads.all_gates_shut_is_sinks_and_recent(name)


# -- RazorAttention -------------------------------------------------------------------------------------------------


def test_repetition_chooses_heads() -> None:
    heads.repetition_chooses_heads()


@each_main_model
def test_other_heads_of_razorattention_keep_sinks_and_recent_tokens(name: str) -> None:
    heads.streaming_heads_keep_sinks_and_recent(name, "razorattention")


def test_razorattention_equals_a_plain_loop() -> None:
    head_layers.razor_equals_a_plain_loop()


def test_razorattention_without_a_summary_is_duoattention() -> None:
    heads.without_a_summary_it_is_duoattention()


# -- FastGen --------------------------------------------------------------------------------------------------------


def test_policies_of_the_six_tokens() -> None:
    head_layers.policies_of_the_six_tokens()


def test_policies_equal_a_slow_route() -> None:
    head_layers.policies_equal_a_slow_route()


@each_main_model
def test_a_threshold_of_zero_keeps_special_tokens(name: str) -> None:
    head_layers.a_threshold_of_zero_keeps_special_tokens(name)


@each_main_model
def test_a_threshold_above_one_is_the_full_cache(name: str) -> None:
    head_layers.a_threshold_above_one_is_the_full_cache(name)


# -- scores of heads ------------------------------------------------------------------------------------------------


def test_needles_are_where_the_answer_stands() -> None:
    calibrating.needles_are_where_the_answer_stands()


def test_repetitions_are_marked() -> None:
    calibrating.repetitions_are_marked()


def test_attention_paid_equals_dense_attention() -> None:
    calibrating.paid_equals_dense_attention()


def test_perfect_heads_score_one() -> None:
    calibrating.perfect_heads_score_one()


def test_a_gate_equals_a_plain_loop() -> None:
    calibrating.area_equals_a_plain_loop()


@pytest.mark.parametrize("name", ["llama_gqa", "gpt2", "gemma3"])
def test_measured_scores_equal_eager_attention(name: str) -> None:
    calibrating.measured_scores_equal_eager_attention(name)


@pytest.mark.parametrize("name", ["llama_gqa", "gpt2", "mistral", "gemma3"])
def test_a_watched_model_says_what_the_stock_model_says(name: str) -> None:
    calibrating.a_watched_model_says_what_the_stock_model_says(name)


def test_weights_tell_models_apart() -> None:
    calibrating.weights_tell_models_apart()


def test_scores_of_another_model_are_refused() -> None:
    calibrating.scores_of_another_model_are_refused()


@pytest.mark.parametrize("method", ["headkv", "duoattention", "razorattention"])
def test_a_model_without_weights_is_counted(method: str) -> None:
    calibrating.a_model_without_weights_is_counted(method)


def test_missing_scores_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calibrating.missing_scores_are_asked_for(monkeypatch, tmp_path)


def test_a_command_that_says_nothing_is_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(calibrated, "command", head_scores.nowhere)
    with pytest.raises(AssertionError):
        calibrating.missing_scores_are_asked_for(monkeypatch, tmp_path)


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("headkv", "budget.beta=0.9", "strategy.budget.beta must be at least 1; got 0.9"),
        ("headkv", "budget.temperature=-1", "strategy.budget.temperature must be at least 0; got -1"),
        ("headkv", "budget.amount=0", "strategy.budget.amount"),
        ("duoattention", "budget.sparsity=1.5", "strategy.budget.sparsity must be between 0 and 1; got 1.5"),
        ("duoattention", "budget.recent=0", "strategy.budget.recent must be at least 1; got 0"),
        ("duoattention", "budget.recent_share=2", "strategy.budget.recent_share must be between 0 and 1; got 2"),
        ("razorattention", "budget.echo_share=2", "strategy.budget.echo_share must be between 0 and 1; got 2"),
        ("razorattention", "budget.induction_share=-1", "strategy.budget.induction_share must be between 0 and 1"),
        ("fastgen", "budget.threshold=-0.1", "strategy.budget.threshold must be at least 0; got -0.1"),
        ("fastgen", "budget.num_special=0", "strategy.budget.num_special must be at least 1; got 0"),
        ("fastgen", "budget.heavy_share=1.1", "heavy_share must be between 0 and 1; got 1.1"),
        ("fastgen", "budget.local_share=-1", "local_share must be between 0 and 1; got -1"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(name: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        strategy(name, override)


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("duoattention", "strategy/position=rank", "strategy/position=original"),
        ("fastgen", "strategy/selector=protected", "has no setting 'heavy_share'"),
        ("fastgen", "selector.heavy_share=0.1", "strategy/selector=policy_order with the same num_special"),
        ("fastgen", "strategy/scorer=attention_mass", "strategy/scorer=mean_attention"),
        ("fastgen", "strategy/evicted=summary", "strategy/evicted=drop"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(name: str, override: str, message: str) -> None:
    plain = () if override.startswith("strategy/selector") else ("selector.num_sink=2",)
    with pytest.raises(ValueError, match=message):
        strategy(name, *plain, override).plans(view_of(model("llama_gqa")), uniform())


def test_sinks_beyond_the_budget_are_refused() -> None:
    made = strategy("headkv", "selector.num_sink=20", "budget.unit=tokens", "budget.amount=12")
    reason = made.unsupported(view_of(model("llama_gqa")), RunShape(prompt_lengths=(24,), new_tokens=4))
    assert reason is not None
    assert "below the 24 protected ones" in reason


# -- every oracle is seen to fail -----------------------------------------------------------------------------------


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    oracles = {
        value
        for module in (heads, head_layers, calibrating)
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__
        and (value.__doc__ or "").startswith(tuple(heads.METHODS))
        and name not in {"missing_scores_are_asked_for", "Plain"}  # proved apart
    }
    assert oracles - seen_to_fail(MUTANTS) == set()
    assert oracles
