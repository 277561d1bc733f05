"""Amounts are read in units that people think in."""

from __future__ import annotations

import pytest

from kvbench.results.labels import BYTE_UNITS, TIME_UNITS, best_unit, labels, number, strategy_label
from tests.results.factory import baseline, frame, row


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0004, "0.000"),
        (0.0614, "0.061"),
        (0.614, "0.614"),
        (7.7, "7.70"),
        (9.999, "10.0"),
        (34, "34.0"),
        (182.4, "182"),
        (12345.6, "12346"),
        (-2.5, "-2.50"),
        (float("nan"), "nan"),
    ],
)
def test_numbers_have_three_digits_that_count(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("values", "units", "unit"),
    [
        ([512], BYTE_UNITS, "B"),
        ([512, 1024], BYTE_UNITS, "KiB"),
        ([2**20 - 1], BYTE_UNITS, "KiB"),
        ([2**40], BYTE_UNITS, "GiB"),
        ([0.5], TIME_UNITS, "us"),
        ([0.0001], TIME_UNITS, "us"),
        ([12.5, 0.1], TIME_UNITS, "ms"),
        ([1000], TIME_UNITS, "s"),
        ([], TIME_UNITS, "us"),
    ],
)
def test_a_unit_fits_the_largest_value(values: list[float], units: dict[str, float], unit: str) -> None:
    assert best_unit(values, units)[0] == unit


def test_a_budget_belongs_to_the_name() -> None:
    assert strategy_label("baseline", None, None) == "baseline"
    assert strategy_label("h2o", "ratio", 0.25) == "h2o 25%"
    runs = frame([row("h2o"), baseline()], [row("h2o", budget_unit="tokens", budget_amount=64.0)])
    named = labels(runs.set_axis([7, 7, 9]))
    assert named.tolist() == ["h2o 25%", "baseline", "h2o 64 tok"]
    assert named.index.tolist() == [7, 7, 9]
