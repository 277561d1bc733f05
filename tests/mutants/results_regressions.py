"""Limits that are held against something else."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from kvbench.results.regressions import Limits, exceeded

Names = Sequence[tuple[str, str]]


def by_the_middle(pairs: pd.DataFrame, names: Names, limits: Limits) -> list[str]:
    """Take noise for a regression."""
    return exceeded(pairs.assign(low=pairs["ratio"]), names, limits)


def by_the_upper_end(pairs: pd.DataFrame, names: Names, limits: Limits) -> list[str]:
    """Fail wherever nothing is certain."""
    return exceeded(pairs.assign(low=pairs["high"]), names, limits)


def one_after_the_other(pairs: pd.DataFrame, names: Names, limits: Limits) -> list[str]:
    """Tell a run's bytes again for each of its phases."""
    return [line for index, one in enumerate(names) for line in exceeded(pairs.iloc[[index]], [one], limits)]


EXCEEDED = [by_the_middle, by_the_upper_end, one_after_the_other]
