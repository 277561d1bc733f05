"""Methods that make something of what leaves: fixed_size, D2O, CaM, LOOK-M, KVMerger, ZeroMerge."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.mutants.merging import MUTANTS
from tests.support import layer_variance, merging, merging_cases

METHODS = ("fixed_size", "d2o", "cam", "lookm", "kvmerger", "zeromerge")
SMALL = {"zeromerge": ("evicted.num_entries=3",)}  # fewer than the prompt has to let go
SETTINGS = (
    ("fixed_size", ()),
    ("fixed_size", ("evicted.mode=sum",)),
    ("fixed_size", ("selector.truncation=hybrid", "selector.split=0.3")),
    ("fixed_size", ("scorer.accumulate=sum", "selector.num_sink=2")),
    ("fixed_size", ("scorer.accumulate=ema", "strategy/evicted=drop")),
    ("fixed_size", ("selector.keeps_newest=false", "strategy/trigger=every_k", "trigger.period=3")),
    ("fixed_size", ("strategy/trigger=prefill_end",)),
    ("d2o", ()),
    ("d2o", ("strategy/trigger=prefill_end",)),
    ("d2o", ("strategy/trigger=every_k", "trigger.period=5", "evicted.memory=0.8")),
    ("d2o", ("evicted.weights=similarity", "evicted.memory=0")),
    ("d2o", ("evicted.weights=mean", "evicted.threshold=none", "selector.num_sink=0")),
    ("cam", ("evicted.num_following=3",)),
    ("cam", ("evicted.seed=5",)),
    ("cam", ("strategy/trigger=every_k", "trigger.period=4", "evicted.num_following=5")),
    ("cam", ("strategy/trigger=prefill_end", "evicted.num_following=2", "selector.recent_share=0")),
    ("lookm", ()),
    ("lookm", ("evicted.weights=mean",)),
    ("lookm", ("evicted.weights=similarity", "evicted.threshold=mean")),
    ("lookm", ("strategy/trigger=every_k", "trigger.period=4")),
    ("kvmerger", ()),
    ("kvmerger", ("evicted.threshold=0.5", "selector.recent_share=0.2")),
    ("kvmerger", ("evicted.threshold=-1",)),
    ("kvmerger", ("evicted.threshold=0.6", "strategy/trigger=every_step")),
    ("zeromerge", ("evicted.num_entries=3",)),
    ("zeromerge", ("evicted.num_entries=3", "strategy/trigger=prefill_end")),
    ("zeromerge", ("evicted.num_entries=1", "evicted.compensation=0.5")),
    ("zeromerge", ("evicted.num_entries=4", "strategy/trigger=every_k", "trigger.period=3")),
)


@pytest.mark.parametrize(("name", "overrides"), SETTINGS)
def test_merging_equals_plain_loops(name: str, overrides: tuple[str, ...]) -> None:
    merging.merging_equals_plain_loops(name, *overrides)


@pytest.mark.parametrize("budget", [20, 30])
@pytest.mark.parametrize("name", METHODS)
def test_a_budget_that_fills_while_decoding_equals_plain_loops(name: str, budget: int) -> None:
    merging.merging_equals_plain_loops(name, *SMALL.get(name, ()), budget=budget)


@pytest.mark.parametrize("name", ["fixed_size", "d2o", "lookm", "kvmerger"])
@pytest.mark.parametrize("trigger", ["every_step", "prefill_end"])
def test_merging_into_one_kept_set_of_all_heads_equals_plain_loops(name: str, trigger: str) -> None:
    merging.merging_equals_plain_loops(name, "strategy/scorer=last_query", f"strategy/trigger={trigger}")


@pytest.mark.parametrize("name", METHODS)
def test_merging_a_prompt_in_pieces_equals_plain_loops(name: str) -> None:
    merging.merging_equals_plain_loops(name, *SMALL.get(name, ()), chunks=(5, 1, 11, 7))


def test_truncation_of_the_worked_example() -> None:
    merging_cases.truncation_of_the_worked_example()


def test_the_newest_entry_stays_while_decoding() -> None:
    merging_cases.the_newest_entry_stays_while_decoding()


def test_recency_counts_while_decoding() -> None:
    merging_cases.recency_counts_while_decoding()


def test_calls_are_forgotten_averaged_or_summed() -> None:
    merging_cases.calls_are_forgotten_averaged_or_summed()


@pytest.mark.parametrize(
    "overrides", [(), ("strategy/trigger=every_k", "trigger.period=3"), ("strategy/scorer=recency",)]
)
def test_the_summary_is_the_mean_of_all_that_left(overrides: tuple[str, ...]) -> None:
    merging_cases.the_summary_is_the_mean_of_all_that_left(*overrides)


def test_a_summary_of_narrow_numbers_is_not_rounded() -> None:
    merging_cases.a_summary_of_narrow_numbers_is_not_rounded()


@pytest.mark.parametrize(("name", "small"), [("fixed_size", ()), ("zeromerge", ("evicted.num_entries=3",))])
def test_a_summary_of_equal_entries_is_exact(name: str, small: tuple[str, ...]) -> None:
    merging.a_summary_of_equal_entries_is_exact(name, *small)


@pytest.mark.parametrize("scorer", ["attention_mass", "last_query"])
@pytest.mark.parametrize(("name", "small"), [("fixed_size", ()), ("zeromerge", ("evicted.num_entries=3",))])
def test_tokens_are_counted_once(name: str, small: tuple[str, ...], scorer: str) -> None:
    merging.tokens_are_counted_once(name, f"strategy/scorer={scorer}", *small)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("d2o", ()),
        ("d2o", ("evicted.weights=similarity",)),
        ("lookm", ("evicted.weights=pivot",)),
        ("lookm", ("evicted.weights=mean", "strategy/trigger=every_k", "trigger.period=3")),
        ("kvmerger", ()),
    ],
)
def test_an_equal_entry_merges_without_a_trace(name: str, overrides: tuple[str, ...]) -> None:
    merging.equal_entries_merge_without_a_trace(name, *overrides)


def test_a_threshold_no_entry_reaches_is_dropping() -> None:
    merging.equals_dropping("kvmerger", "evicted.threshold=1")


def test_certain_merges_conserve_the_sum_of_values() -> None:
    merging_cases.certain_merges_conserve_the_sum_of_values()


def test_merges_without_a_chance_leave_values_alone() -> None:
    merging_cases.merges_without_a_chance_leave_values_alone()


def test_merges_over_seeds_are_as_frequent_as_their_chance() -> None:
    merging_cases.merges_over_seeds_are_as_frequent_as_their_chance()


@pytest.mark.parametrize("model", ["llama_gqa", "llama_mha", "gpt2"])
def test_layers_share_by_the_variance_of_their_scores(model: str) -> None:
    layer_variance.layers_share_by_the_variance_of_their_scores(model)


def test_padding_has_no_part_in_a_share_of_layers() -> None:
    layer_variance.padding_has_no_part()


def test_the_first_and_last_layers_of_deep_models_stay_whole() -> None:
    layer_variance.the_first_and_last_layers_of_deep_models_stay_whole()


def test_a_share_of_layers_holds_what_is_protected() -> None:
    layer_variance.a_share_holds_what_is_protected()


# -- the oracles can fail ---------------------------------------------------------------------------------------------


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


ORACLES: tuple[Callable[..., None], ...] = (
    merging.merging_equals_plain_loops,
    merging.equals_dropping,
    merging.equal_entries_merge_without_a_trace,
    merging.a_summary_of_equal_entries_is_exact,
    merging.tokens_are_counted_once,
    merging_cases.truncation_of_the_worked_example,
    merging_cases.the_newest_entry_stays_while_decoding,
    merging_cases.recency_counts_while_decoding,
    merging_cases.calls_are_forgotten_averaged_or_summed,
    merging_cases.the_summary_is_the_mean_of_all_that_left,
    merging_cases.a_summary_of_narrow_numbers_is_not_rounded,
    merging_cases.certain_merges_conserve_the_sum_of_values,
    merging_cases.merges_without_a_chance_leave_values_alone,
    merging_cases.merges_over_seeds_are_as_frequent_as_their_chance,
    layer_variance.layers_share_by_the_variance_of_their_scores,
    layer_variance.padding_has_no_part,
    layer_variance.the_first_and_last_layers_of_deep_models_stay_whole,
    layer_variance.a_share_holds_what_is_protected,
)


def test_every_oracle_is_seen_to_fail() -> None:
    assert set(ORACLES) - seen_to_fail(MUTANTS) == set()
