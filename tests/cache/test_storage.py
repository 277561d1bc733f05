"""Bytes, storages and what a decode step does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvbench.models.view import view_of
from kvbench.strategies.budget.base import Uniform
from kvbench.types import RunShape
from tests.support import checks, steps, storage
from tests.support.models import NAMES, model
from tests.support.strategies import LIMITED, METHODS, rules, strategy

UNEVEN = (24, 15)
KINDS = ("llama_gqa", "gpt2", "gemma3")  # of which each method makes other bytes: grouped heads, ranks, a window

each_method = pytest.mark.parametrize("name", METHODS)
each_limited = pytest.mark.parametrize("name", LIMITED)


@pytest.mark.parametrize(
    ("name", "model"),
    [(name, model) for name in METHODS for model in NAMES if model in KINDS or name in ("h2o", "attention_sink")],
)
@pytest.mark.parametrize(("unit", "lengths"), [("tokens", (24, 24)), ("ratio", UNEVEN)])
def test_bytes_and_entries_follow_their_formulas_at_every_step(
    name: str, model: str, unit: str, lengths: tuple[int, ...]
) -> None:
    storage.bytes_follow_their_formulas(name, model, unit, lengths)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each_method
def test_bytes_follow_their_formulas_in_narrow_dtypes(name: str, dtype: torch.dtype) -> None:
    storage.bytes_follow_their_formulas(name, "llama_gqa", dtype=dtype)


@pytest.mark.parametrize("model", KINDS)
@pytest.mark.parametrize("lengths", [(24, 24), UNEVEN])
@each_limited
def test_a_budget_in_bytes_is_used_up_and_never_exceeded(name: str, model: str, lengths: tuple[int, ...]) -> None:
    storage.byte_budget_is_kept(name, model, lengths)


@each_limited
def test_a_budget_in_bytes_covers_a_growing_cache(name: str) -> None:
    storage.byte_budget_is_kept(name, "llama_gqa", new=None)


@each_limited
def test_a_prompt_read_at_once_is_never_stored_whole(name: str) -> None:
    storage.a_prompt_at_once_is_never_stored_whole(name)


def test_fractions_of_a_length_are_exact() -> None:
    storage.fractions_are_exact()


@pytest.mark.parametrize("slots", [70, 200, 321, 400, 1000])
def test_a_budget_in_bytes_covers_the_first_storage_of_a_growing_cache_of_any_size(slots: int) -> None:
    budget = Uniform(
        amount=slots * storage.slot(rules("snapkv", 0), False, "llama_gqa", 8) * 2, unit="bytes", skip_layers=()
    )
    made, view = replace(strategy("snapkv"), budget=budget), view_of(model("llama_gqa"))
    run = RunShape(prompt_lengths=(5000,), new_tokens=None)
    per_entry = budget.amount / slots
    assert budget.amount - 2 * per_entry < made.allocated_bytes(view, run) <= budget.amount


@pytest.mark.parametrize(
    ("name", "model"), [*((name, "llama_gqa") for name in METHODS), ("attention_sink", "gpt2"), ("h2o", "gemma3")]
)
def test_a_decode_step_works_in_place_and_never_waits_for_the_host(name: str, model: str) -> None:
    steps.steady_decode_does_the_same_in_place(name, model)


@each_method
def test_a_decode_step_of_uneven_rows_works_in_place_too(name: str) -> None:
    steps.steady_decode_does_the_same_in_place(name, "llama_gqa", UNEVEN, steps=16)


@pytest.mark.parametrize("lengths", [(24, 24), UNEVEN])
@each_method
def test_restore_goes_back_exactly(name: str, lengths: tuple[int, ...]) -> None:
    checks.restore_is_exact(name, "llama_gqa", lengths)


@each_method
def test_restore_goes_back_exactly_in_a_growing_cache(name: str) -> None:
    checks.restore_is_exact(name, "gpt2", new=None)


@each_method
def test_a_cache_of_unknown_length_equals_one_of_known_length(name: str) -> None:
    checks.growing_equals_fixed(name, "llama_gqa")
