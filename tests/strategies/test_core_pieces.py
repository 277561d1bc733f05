"""Pieces of the core that no method of the core itself puts together: many entries that leave at once, uneven heads."""

from __future__ import annotations

import pytest

from tests.support import checks, steps, storage
from tests.support.strategies import every

UNEVEN = (24, 15)
SCORED = ("h2o", "tova", "random_eviction", "knorm")


@pytest.mark.parametrize("model", ["llama_gqa", "gpt2"])
@pytest.mark.parametrize("period", [2, 5, 11])
@pytest.mark.parametrize("name", SCORED)
def test_entries_that_leave_so_many_at_a_time_equal_their_mask(name: str, period: int, model: str) -> None:
    for prompt in (24, 8):
        checks.equals_dense_attention_under_its_mask(
            name, model, prompt=prompt, overrides=every(period), changes=(("period", period), ("every_step", True))
        )


@pytest.mark.parametrize("name", ["sliding_window", "snapkv"])
def test_any_method_lets_so_many_leave_at_a_time(name: str) -> None:
    changes = (("period", 3), ("every_step", True))
    checks.equals_dense_attention_under_its_mask(name, "llama_gqa", overrides=every(3), changes=changes)


@pytest.mark.parametrize("by_ratio", [False, True])
@pytest.mark.parametrize("name", SCORED)
def test_rows_of_a_padded_batch_let_go_when_each_would_alone(name: str, by_ratio: bool) -> None:
    checks.padded_rows_equal_rows_alone(name, "llama_gqa", by_ratio=by_ratio, period=3)
    checks.padded_rows_equal_rows_alone(name, "gpt2", by_ratio=by_ratio, chunks=(5, 13, 6), period=4)


@pytest.mark.parametrize(("unit", "lengths"), [("tokens", (24, 24)), ("ratio", UNEVEN), ("tokens", (9, 24))])
@pytest.mark.parametrize("name", [*SCORED, "sliding_window"])
def test_bytes_follow_their_formulas_when_many_leave_at_once(name: str, unit: str, lengths: tuple[int, ...]) -> None:
    storage.bytes_follow_their_formulas(name, "llama_gqa", unit, lengths, period=5)


@pytest.mark.parametrize("lengths", [(24, 24), UNEVEN])
@pytest.mark.parametrize("name", SCORED)
def test_a_period_of_decode_steps_works_in_place_and_never_waits_for_the_host(
    name: str, lengths: tuple[int, ...]
) -> None:
    steps.steady_decode_does_the_same_in_place(name, "llama_gqa", lengths, steps=16, period=4)


@pytest.mark.parametrize("name", SCORED)
def test_restore_goes_back_to_the_middle_of_a_period(name: str) -> None:
    for lengths in ((24, 24), UNEVEN):
        checks.restore_is_exact(name, "llama_gqa", lengths, overrides=every(3))
