"""How strategies and amounts are called where people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

BYTE_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
TIME_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def best_unit(values: Sequence[float], units: Mapping[str, float]) -> tuple[str, float]:
    """Return the largest unit in which the largest value is at least 1, and its size.

    Args:
        values: in the unit of size 1.
        units: by name, smallest first.
    """
    top = max(values, default=0.0)
    fitting = [unit for unit in units.items() if unit[1] <= top]
    return fitting[-1] if fitting else next(iter(units.items()))


def number(value: float) -> str:
    """Return three significant digits, without an exponent, the whole part whole, and at most three decimals."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(float(f"{value:.3g}")))))
    return f"{value:.{min(decimals, 3)}f}"


def strategy_label(strategy: str, unit: str | None, amount: float | None) -> str:
    """Return a strategy's name with the budget it was given.

    Args:
        strategy: its name.
        unit: what the budget counts, or None where there is no budget.
        amount: the budget.
    """
    if unit is None or amount is None:
        return strategy
    if unit == "ratio":
        return f"{strategy} {amount * 100:g}%"
    if unit == "tokens":
        return f"{strategy} {amount:g} tok"
    return f"{strategy} {bytes_text(amount)}"


def bytes_text(amount: float) -> str:
    """Return bytes in a unit that fits them."""
    name, size = best_unit([amount], BYTE_UNITS)
    return f"{number(amount / size)} {name}"


def labels(frame: pd.DataFrame) -> pd.Series:
    """Return the label of every row.

    Args:
        frame: of runs or steps, with columns strategy, budget_unit, budget_amount.
    """
    columns = ["strategy", "budget_unit", "budget_amount"]
    kinds = frame[columns].drop_duplicates()
    named = [
        strategy_label(strategy, *((None, None) if pd.isna(unit) else (unit, amount)))
        for strategy, unit, amount in kinds.itertuples(index=False)
    ]
    return frame[columns].merge(kinds.assign(label=named), on=columns, how="left").set_index(frame.index)["label"]
