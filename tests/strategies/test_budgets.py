"""Methods whose layers or heads keep different numbers of entries: PyramidKV, AdaKV, CAKE, SimLayerKV, DefensiveKV."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvbench.configuration import ConfigError
from kvbench.models.view import view_of
from tests.mutants.budgets import MUTANTS
from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.support import budget_layers, budget_scores, budgets, toy
from tests.support.checks import uniform
from tests.support.models import MAIN, model
from tests.support.strategies import strategy

METHOD_NAMES = ("PyramidKV", "AdaKV", "CAKE", "SimLayerKV", "DefensiveKV", "Rounding")  # how oracles begin

each_main_model = pytest.mark.parametrize("model_name", MAIN)


def test_steps_of_the_paper() -> None:
    budgets.steps_of_the_paper()


def test_layers_add_up_and_never_rise() -> None:
    budgets.layers_add_up_and_never_rise()


def test_a_flat_pyramid_is_snapkv_bit_for_bit() -> None:
    budgets.a_flat_pyramid_is_snapkv_bit_for_bit()


def test_layers_follow_ratios() -> None:
    budgets.layers_follow_ratios()


def test_a_pyramid_of_bytes_is_within_them() -> None:
    budgets.a_pyramid_of_bytes_is_within_them()


def test_a_pyramid_of_bytes_uses_them_up() -> None:
    budgets.bytes_are_used_up()


def test_heads_of_the_paper() -> None:
    budgets.heads_of_the_paper()


def test_heads_equal_a_plain_contest() -> None:
    budgets.heads_equal_a_plain_contest()


@each_main_model
@pytest.mark.parametrize("name", ["adakv", "defensivekv"])
def test_sets_of_a_model_equal_a_plain_contest(name: str, model_name: str) -> None:
    budgets.sets_equal_a_plain_contest(name, model_name)


def test_a_full_safeguard_is_snapkv_bit_for_bit() -> None:
    budgets.a_full_safeguard_is_snapkv_bit_for_bit()


def test_heads_that_are_alike_keep_alike() -> None:
    budgets.heads_that_are_alike_keep_alike()


def test_a_contest_retains_more_than_equal_heads() -> None:
    budgets.a_contest_retains_more_than_equal_heads()


def test_layers_of_the_paper() -> None:
    budget_layers.layers_of_the_paper()


def test_wholes_are_exact() -> None:
    budget_layers.wholes_are_exact()


def test_wants_equal_plain_loops() -> None:
    budget_scores.wants_equal_plain_loops()


def test_cutting_once_is_cutting_layer_by_layer() -> None:
    budget_layers.cutting_once_is_cutting_layer_by_layer()


@each_main_model
def test_layers_of_a_model_hold_their_share(model_name: str) -> None:
    budget_layers.layers_hold_their_share(model_name)


def test_fluctuation_equals_plain_loops() -> None:
    budget_scores.fluctuation_equals_plain_loops()
    budget_scores.fluctuation_of_the_worked_example()


def test_fluctuation_decodes_by_the_latest_query() -> None:
    budget_scores.fluctuation_decodes_by_the_latest_query()


def test_laziness_equals_plain_loops() -> None:
    budget_scores.laziness_equals_plain_loops()
    budget_scores.laziness_of_the_worked_example()


def test_no_layer_is_lazy_above_one() -> None:
    budget_layers.no_layer_is_lazy_above_one()


def test_lazy_layers_are_the_sink_method() -> None:
    budget_layers.lazy_layers_are_the_sink_method()


@each_main_model
def test_rows_are_lazy_on_their_own(model_name: str) -> None:
    budget_layers.lazy_rows_alone_are_lazy(model_name)


def test_a_layer_that_sees_sinks_only_is_lazy() -> None:
    budget_layers.a_layer_that_sees_sinks_only_is_lazy()


@pytest.mark.parametrize("certain", [0.0, 0.5, 0.9])
def test_defence_equals_plain_loops(certain: float) -> None:
    budget_scores.defence_equals_plain_loops(certain)


def test_one_spike_ranks_first() -> None:
    budget_scores.one_spike_ranks_first()


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("pyramidkv", "budget.steepness=0.5", r"strategy\.budget\.steepness must be at least 1; got 0\.5"),
        ("pyramidkv", "budget.layer_ratios=[1,-1]", r"strategy\.budget\.layer_ratios must be 0 or more each, and not"),
        ("pyramidkv", "budget.layer_ratios=[0,0]", r"strategy\.budget\.layer_ratios must be 0 or more each, and not"),
        ("adakv", "budget.safeguard=1.5", r"strategy\.budget\.safeguard must be between 0 and 1; got 1\.5"),
        ("cake", "budget.window=0", r"strategy\.budget\.window must be at least 1; got 0"),
        ("cake", "budget.entropy_temperature=0", r"strategy\.budget\.entropy_temperature must be above 0; got 0\.0"),
        ("cake", "budget.variance_temperature=0", r"strategy\.budget\.variance_temperature must be above 0; got 0\.0"),
        ("cake", "scorer.window=0", r"strategy\.(scorer|budget)\.window must be at least 1; got 0"),
        ("cake", "scorer.kernel=2", r"strategy\.scorer\.kernel must be odd and at least 1; got 2"),
        ("cake", "scorer.variance_weight=-1", r"strategy\.scorer\.variance_weight must be 0 or more; got -1\.0"),
        ("simlayerkv", "budget.queries=0", r"strategy\.(scorer|budget)\.queries must be at least 1; got 0"),
        ("defensivekv", "scorer.window=0", r"strategy\.scorer\.window must be at least 1; got 0"),
        ("defensivekv", "scorer.kernel=4", r"strategy\.scorer\.kernel must be odd and at least 1; got 4"),
        ("defensivekv", "scorer.certain=2", r"strategy\.scorer\.certain must be between 0 and 1; got 2\.0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(name: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        strategy(name, override)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("pyramidkv", ("budget.layer_ratios=[1,2,3]",), r"strategy\.budget\.layer_ratios needs one number .* 2 layers"),
        ("simlayerkv", ("scorer.queries=3",), r"strategy\.budget\.queries=4 queries at hand"),
        ("simlayerkv", ("strategy/position=rank",), r"strategy/budget=lazy needs strategy/position=original"),
        ("simlayerkv", ("budget.num_sink=3",), r"strategy\.budget\.num_sink must be strategy\.selector\.num_sink=2"),
    ],
)
def test_compositions_that_do_not_fit_are_refused(name: str, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        strategy(name, *overrides).plans(view_of(model("llama_gqa")), uniform())


def test_lazy_layers_keep_by_recency_alone() -> None:
    with pytest.raises(ValueError, match="strategy/budget=lazy needs entries scored by recency"):
        replace(strategy("simlayerkv"), scorer=strategy("h2o").scorer)


def test_a_model_without_a_known_projection_is_refused() -> None:
    seen = toy.view(*toy.prompt())
    with pytest.raises(ValueError, match="strategy/scorer=defensive needs the output projection"):
        strategy("defensivekv").scorer.prompt(replace(seen, shape=toy.SHAPE))


# -- every oracle is seen to fail -----------------------------------------------------------------------------------


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    oracles = {
        value
        for module in (budgets, budget_layers, budget_scores)
        for value in vars(module).values()
        if getattr(value, "__module__", None) == module.__name__ and (value.__doc__ or "").startswith(METHOD_NAMES)
    }
    assert oracles - seen_to_fail(MUTANTS) == set()
    assert oracles
