"""What is worse than a limit is told, and nothing that might be noise."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from math import inf, nan

import pandas as pd
import pytest
from rich.console import Console

from kvbench.results.pairs import names_of, print_pairs
from kvbench.results.regressions import Limits, exceeded
from tests.mutants import results_regressions as mutants

Exceeded = Callable[..., list[str]]
PAIR: dict[str, object] = {
    "sweep_a": "monday", "run_id_a": "r0", "strategy_a": "h2o 25%", "ratio_a": 0.9, "sweep_b": "friday",
    "run_id_b": "r1", "strategy_b": "h2o 25%", "ratio_b": 0.8, "phase": "decode", "model": "tiny",
    "weights": "embedded", "workload": "decode", "batch_size": 1, "prompt_tokens": 1024, "query_aware": False,
    "device_name": "AMD EPYC", "ratio": 1.125, "low": 1.02, "high": 1.2, "kv_allocated_bytes_a": 3 * 2**20,
    "kv_allocated_bytes_b": 2**21, "kv_ratio": 1.5, "nll_difference": 0.02,
}  # fmt: skip


def pairs(*changes: dict[str, object]) -> pd.DataFrame:
    return pd.DataFrame([{**PAIR, **change} for change in changes])


def limits(**values: float) -> Limits:
    return Limits(**{"time": inf, "kv": inf, "loss": inf, **values})


def check_each_limit_by_hand(found_above: Exceeded) -> None:
    """A ratio counts by the lower end of its interval, bytes and losses as they are, once for both phases of a run."""
    both = pairs({}, {"phase": "prefill", "low": 1.3, "ratio": 1.4, "high": 1.5})
    names = names_of(both)
    counts = {
        (name, limit): len(found_above(both, names, limits(**{name: limit})))
        for name, limit in [("time", 1.01), ("time", 1.1), ("time", 1.3), ("kv", 1.49), ("kv", 1.5), ("loss", 0.01)]
    }
    assert list(counts.values()) == [2, 1, 0, 1, 0, 1], counts
    assert found_above(both, names, limits(loss=0.02)) == []


def test_each_limit_by_hand() -> None:
    check_each_limit_by_hand(exceeded)


@pytest.mark.parametrize("mutant", mutants.EXCEEDED)
def test_oracle_catches_another_end_of_the_interval(mutant: Exceeded) -> None:
    with pytest.raises(AssertionError):
        check_each_limit_by_hand(mutant)


def test_a_sentence_says_which_pair_and_by_how_much() -> None:
    one = pairs({})
    said = exceeded(one, names_of(one), Limits(time=1.01, kv=1.0, loss=0.0))
    where = "tiny, decode of 1,024 tokens: h2o 25% over h2o 25%: "
    assert said == [
        f"{where}decode takes 1.125 times as long, [1.020, 1.200], above --fail-above 1.01",
        f"{where}1.50 times the bytes, above --fail-kv-above 1",
        f"{where}+0.0200 nats per token, above --fail-loss-above 0",
    ]


def test_a_limit_that_nothing_can_be_held_against_is_refused() -> None:
    unasked = pairs({"nll_difference": nan})
    with pytest.raises(ValueError, match="--fail-loss-above can be held against nothing: no pair has nll_difference"):
        exceeded(unasked, names_of(unasked), limits(loss=0.1))
    assert exceeded(unasked, names_of(unasked), limits(time=1.1)) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"time": nan}, "--fail-above must be a ratio above 0, such as 1.05; got nan"),
        ({"kv": 0.0}, "--fail-kv-above must be a ratio above 0"),
        ({"loss": -inf}, "--fail-loss-above must be nats per token, such as 0.01; got -inf"),
    ],
)
def test_limits_that_nothing_could_exceed_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        limits(**values)


def test_runs_of_one_name_are_told_apart() -> None:
    two = pairs({}, {"phase": "prefill"}, {"run_id_b": "r2"})
    assert names_of(two) == [
        ("h2o 25%", "h2o 25% (r1)"), ("h2o 25%", "h2o 25% (r1)"), ("h2o 25%", "h2o 25% (r2)")
    ]  # fmt: skip


@pytest.mark.parametrize("width", [160, 80])
def test_the_table_shows_each_pair_as_wide_as_there_is_room(width: int) -> None:
    out = StringIO()
    still = {"low": 0.98, "high": 1.03, "nll_difference": nan, "kv_ratio": nan}
    print_pairs(pairs({}, {**still, "phase": "prefill"}, {"low": 0.7, "high": 0.9}), Console(file=out, width=width))
    said = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    assert "tiny | decode: 1,024 tokens, batch 1 | AMD EPYC" in said
    assert "losses of other tokens" in " ".join(said)
    rows = [line for line in said if line.startswith("h2o 25%")]
    if width == 160:
        assert rows == [
            "h2o 25% h2o 25% decode a takes longer 0.900 0.800 1.125 [1.020, 1.200] 3.00 2.00 1.50 +0.0200",
            "h2o 25% h2o 25% prefill no difference 0.900 0.800 1.125 [0.980, 1.030] 3.00 2.00 - -",
            "h2o 25% h2o 25% decode a is faster 0.900 0.800 1.125 [0.700, 0.900] 3.00 2.00 1.50 +0.0200",
        ]
    else:
        assert rows[:2] == [
            "h2o 25% decode 0.900 1.125 3.00 1.50",
            "h2o 25% a takes longer 0.800 [1.020, 1.200] 2.00 +0.0200",
        ]
