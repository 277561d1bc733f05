"""What does not beat chance is said so, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from kvbench.results.cells import Row
from kvbench.results.control import no_better_than_random
from tests.mutants import results_control as mutants
from tests.results.factory import row

Judge = Callable[[Sequence[Row]], list[tuple[Row, list[str]]]]


def of(strategy: str, loss: float | None, recall: float | None, score: float | None = None, **more: object) -> Row:
    """Return a row with a loss, a key-value recall and a score."""
    return dict(row(strategy, nll_nats=loss, recall_key_value=recall, recall_passkey=None, score=score, **more))


def check(judge: Judge) -> None:
    """Hold a judge to what the control scored."""
    control = of("random_eviction", 2.5, 0.4, 0.3)
    rows = [
        control,
        of("h2o", 2.4, 0.5),
        of("tova", 2.4, 0.3),
        of("snapkv", 2.6, 0.4, 0.4),
        of("lagkv", 2.4, 0.5, 0.3),
        of("knorm", 9.0, 0.0, budget_amount=0.5),
        of("attention_sink", None, None),
    ]
    found = {str(judged["strategy"]): lost for judged, lost in judge(rows)}
    assert found == {"tova": ["key-value recall"], "snapkv": ["loss", "key-value recall"], "lagkv": ["score"]}
    assert judge(rows[1:]) == []
    mib = 2**20
    assert judge([control, of("knorm", 9.0, 0.0, kv_allocated_bytes=control["kv_allocated_bytes"] - mib)]) == []
    assert judge([control, of("knorm", 9.0, 0.0, kv_allocated_bytes=9 * control["kv_allocated_bytes"])]) != []
    perfect = [of("random_eviction", 2.5, 1.0), of("h2o", 2.4, 1.0)]
    assert judge(perfect) == []


def test_rows_that_do_not_beat_the_control_are_named() -> None:
    check(no_better_than_random)


@pytest.mark.parametrize(
    "mutant", [mutants.compares_across_budgets, mutants.compares_across_bytes, mutants.wants_a_lower_recall]
)
def test_the_check_fails_on_a_wrong_judge(mutant: Judge) -> None:
    with pytest.raises(AssertionError):
        check(mutant)
