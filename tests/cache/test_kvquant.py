"""KVQuant: nearest numbers of tables that are fitted to a model, outliers and first tokens exact."""

from __future__ import annotations

import pytest

from kvbench.configuration import ConfigError
from kvbench.kernels import compiling
from tests.mutants.core_mutant import Check, Mutant, each_of, seen_to_fail
from tests.mutants.kvquant import MUTANTS
from tests.support import codebooks, kvquant
from tests.support.strategies import composed


def test_codes_equal_plain_loops() -> None:
    kvquant.codes_equal_plain_loops()


def test_keys_are_kept_as_they_were_before_rotation() -> None:
    kvquant.keys_are_kept_as_they_were_before_rotation()


def test_outliers_and_first_tokens_are_exact() -> None:
    kvquant.outliers_and_first_tokens_are_exact()


def test_others_stay_within_their_bound() -> None:
    kvquant.others_stay_within_their_bound()


def test_a_token_is_written_once() -> None:
    kvquant.a_token_is_written_once()


def test_any_slot_can_be_written() -> None:
    kvquant.any_slot_can_be_written()


def test_bytes_are_counted_to_the_last() -> None:
    kvquant.bytes_are_counted_to_the_last()


def test_attention_is_that_on_what_is_read() -> None:
    kvquant.attention_is_that_on_what_is_read()


@pytest.mark.skipif(compiling.compiler() is None, reason="no C++ compiler")
def test_native_attention_is_that_on_what_is_read() -> None:
    kvquant.attention_is_that_on_what_is_read("native")


@pytest.mark.parametrize("name", ["snapkv", "sliding_window", "attention_sink"])
def test_selection_composes(name: str) -> None:
    kvquant.selection_composes(name)


def test_sinks_that_move_along_compose() -> None:
    kvquant.sinks_that_move_along_compose()


def test_rows_begin_with_their_first_tokens() -> None:
    kvquant.rows_begin_with_their_first_tokens()


def test_a_step_needs_little_room() -> None:
    kvquant.a_step_needs_little_room()


def test_a_model_without_weights_is_counted() -> None:
    kvquant.a_model_without_weights_is_counted()


def test_heads_that_go_their_own_way_are_refused() -> None:
    for name in ("h2o", "headkv", "adakv"):
        with pytest.raises(ConfigError, match="writes all heads of a slot at once"):
            composed(name, "strategy/codec=kvquant3")


# -- calibration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama_gqa", "gpt2"])
def test_gradients_are_those_of_the_loss(name: str) -> None:
    codebooks.gradients_are_those_of_the_loss(name)


def test_a_table_is_plain_lloyd_and_loses_no_more_than_even_steps() -> None:
    codebooks.a_table_is_plain_lloyd_and_loses_no_more_than_even_steps()


def test_tables_go_by_what_an_error_costs() -> None:
    codebooks.tables_go_by_what_an_error_costs()


def test_thresholds_are_percentiles() -> None:
    codebooks.thresholds_are_percentiles()


def test_keys_before_rotation_lose_less() -> None:
    codebooks.keys_before_rotation_lose_less()


@each_of(MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    mine = {
        value
        for module in (kvquant, codebooks)
        for value in vars(module).values()
        if getattr(value, "__module__", None) == module.__name__
        and getattr(value, "__annotations__", {}).get("return") == "None"
    }
    assert mine == seen_to_fail(MUTANTS)
