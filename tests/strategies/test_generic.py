"""Every method that has a `Setting`: the oracles that need nothing but its yaml."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

import kvbench
from kvbench.models.view import view_of
from tests.support import checks, generic, steps
from tests.support.models import model as model_of
from tests.support.settings import Setting, core
from tests.support.strategies import settings, strategy

WITHOUT_SETTING = (  # engines that bring a cache of their own, and networks that have no entries: test_recurrent.py
    "transformers", "vllm", "hf_quanto", "hf_hqq", "hf_fp8", "hf_offloaded", "hf_offloaded_static",
    "matched", "non_transformer_mamba", "non_transformer_rwkv",
)  # fmt: skip
METHODS = sorted(  # those of the core are proved in test_methods.py
    name for name, setting in settings().items() if name not in core.SETTINGS and not setting.like
)
TURNING = [name for name in METHODS if settings()[name].turns_keys]

BOTH = ("llama_gqa", "gpt2")  # rotated keys and grouped queries, and neither


def in_turn(first: int, names: Sequence[str] = METHODS) -> pytest.MarkDecorator:
    """Return every other method from the first or second on; `make shipped` the others as well."""
    cases = [pytest.param(n, marks=pytest.mark.shipped if at % 2 != first else ()) for at, n in enumerate(names)]
    return pytest.mark.parametrize("name", cases)


def setting(name: str) -> Setting:
    """Return the setting of a method."""
    return settings()[name]


def those(*models: str, **wanted: bool) -> pytest.MarkDecorator:
    """Return the methods of which all of this holds, with each of the models they can be put to.

    Of two models the suite puts one to each method, in turn; `make shipped` the other as well.
    """
    chosen = [name for name in METHODS if all(getattr(setting(name), key) == value for key, value in wanted.items())]
    cases = []
    for number, name in enumerate(chosen):
        can = [model for model in models if model != "gpt2" or name not in TURNING]
        for model in can:
            later = len(can) > 1 and model != can[number % 2]
            cases.append(pytest.param(name, model, marks=pytest.mark.shipped if later else ()))
    return pytest.mark.parametrize(("name", "model"), cases)


def test_every_method_has_a_setting() -> None:
    folder = Path(kvbench.__file__).parent / "conf" / "strategy"
    names = {path.stem for path in folder.glob("*.yaml")}
    assert sorted(names - set(settings()) - set(WITHOUT_SETTING)) == [], "methods that no generic oracle sees"
    assert sorted(set(settings()) - names) == [], "settings of methods that do not exist"
    for name, mine in settings().items():
        if mine.like:
            one, other = strategy(name), strategy(mine.like)
            assert [type(part) for part in vars(one).values()] == [type(part) for part in vars(other).values()], name


@those(*BOTH, has_budget=True, exact_when_full=True)
def test_a_budget_above_the_length_is_the_baseline_bit_for_bit(name: str, model: str) -> None:
    checks.budget_above_length_is_baseline(name, model, by=checks.usual_once)


@those(*BOTH, merges=False, moves_positions=False)
def test_logits_equal_dense_attention_under_what_is_held(name: str, model: str) -> None:
    for overrides in generic.triggers(name, model):
        generic.equals_dense_attention_under_what_is_held(name, model, overrides, by=checks.usual_once)


@those("llama_gqa")
def test_bytes_are_what_was_said(name: str, model: str) -> None:
    generic.bytes_are_what_was_said(name, model)
    generic.bytes_are_what_was_said(name, model, (24, 17))


@those("llama_gqa", forgets=False)
def test_the_budget_is_used_exactly_at_every_step(name: str, model: str) -> None:
    for overrides in generic.triggers(name, model):
        generic.budget_is_used_exactly(name, model, overrides)


@in_turn(1)
def test_a_pass_over_many_tokens_equals_one_by_one(name: str) -> None:
    checks.many_tokens_equal_one_by_one(name, "llama_gqa", by=checks.usual_once)


@those("llama_gqa", same_in_chunks=True)
def test_a_chunked_prompt_equals_the_prompt_at_once(name: str, model: str) -> None:
    checks.chunks_equal_one_shot(name, model, by=checks.usual_once)


@in_turn(1)
def test_rows_of_a_padded_batch_equal_rows_alone(name: str) -> None:
    for overrides in generic.triggers(name, "llama_gqa"):
        generic.padded_rows_equal_rows_alone(name, "llama_gqa", overrides)


@pytest.mark.parametrize("name", TURNING)
def test_a_method_that_turns_keys_refuses_a_model_that_does_not(name: str) -> None:
    with pytest.raises(ValueError, match="position"):
        strategy(name, tokens=checks.BUDGET).build(view_of(model_of("gpt2")), checks.uniform())


@in_turn(0)
def test_a_second_sequence_finds_nothing_of_the_first(name: str) -> None:
    checks.second_sequence_is_fresh(name, "llama_gqa", by=checks.usual_once)


@in_turn(1)
def test_restore_goes_back_exactly(name: str) -> None:
    checks.restore_is_exact(name, "llama_gqa", (24, 17), snapshots=(4,))


@in_turn(0)
def test_a_cache_of_unknown_length_equals_one_of_known_length(name: str) -> None:
    checks.growing_equals_fixed(name, "llama_gqa")
    checks.restore_is_exact(name, "llama_mha", new=None, snapshots=(0,))


@those("llama_gqa", forgets=False)
def test_protected_entries_are_always_held(name: str, model: str) -> None:
    generic.protected_entries_stay(name, model)


@those(*BOTH, moves_positions=False, any_loop=True)
def test_a_model_that_asks_the_cache_gets_true_positions(name: str, model: str) -> None:
    checks.positions_are_true(name, model, by=checks.usual_once)


@in_turn(0, [name for name in METHODS if not settings()[name].waits])
def test_a_decode_step_never_waits_for_the_host(name: str) -> None:
    steps.moves_nothing(name, "llama_gqa", (24, 24), 12, 0, forbidden=steps.HOST)
