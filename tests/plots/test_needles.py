"""Where what is asked for is still found."""

from __future__ import annotations

from itertools import product

import pandas as pd
import pytest

from kvbench.plots import needle_map
from tests.mutants import results_plots as mutants
from tests.plots.drawing import axes
from tests.plots.test_latency import Plot

SCORES = {(0.0, 256): [1.0, 1.0], (0.5, 256): [0.0, 0.5], (1.0, 256): [1.0, 0.0], (0.0, 512): [0.0, 0.0]}
MEANS = [(0.0, 256, 1.0, 2), (0.0, 512, 0.0, 2), (0.5, 256, 0.25, 2), (1.0, 256, 0.5, 2)]


def samples(arm: str = "strategy") -> pd.DataFrame:
    """Return answers to needles, the last cell of which nobody asked, and one to a question of no depth."""
    rows = [
        {"arm": arm, "strategy": "h2o", "context_tokens": tokens, "depth": depth, "score": score}
        for (depth, tokens), scores in SCORES.items()
        for score in scores
    ]
    return pd.DataFrame([*rows[::-1], {**rows[0], "context_tokens": 9, "depth": None}])


def check_each_cell_has_its_mean(plot: Plot) -> None:
    """By reading: numbers at their length and depth, the beginning of a context above, colours of the same numbers."""
    ax = axes()
    table = plot(samples(), ax)
    assert [tuple(row) for row in table.itertuples(index=False)] == MEANS
    columns = {text.get_text(): at for at, text in zip(ax.get_xticks(), ax.get_xticklabels(), strict=True)}
    rows = {text.get_text(): at for at, text in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)}
    assert list(columns) == ["256", "512"]
    assert list(rows) == ["0%", "50%", "100%"]
    heights = [ax.transData.transform((0.5, at))[1] for at in rows.values()]
    assert heights == sorted(heights, reverse=True)
    written = {(text.get_position(), text.get_text()) for text in ax.texts}
    want = {((columns[str(tokens)], rows[f"{depth:.0%}"]), f"{100 * mean:.0f}") for depth, tokens, mean, _ in MEANS}
    assert written == want
    (mesh,) = ax.collections
    colours = mesh.get_array()
    assert colours is not None
    drawn = {(row, column): colours[row][column] for row, column in product(range(3), range(2))}
    assert [drawn[place] for place in ((0, 0), (0, 1), (1, 0), (2, 0))] == [mean for _, _, mean, _ in MEANS]
    assert mesh.get_clim() == (0, 1)


def test_each_cell_has_its_mean() -> None:
    check_each_cell_has_its_mean(needle_map)


@pytest.mark.parametrize("mutant", mutants.MAPS)
def test_oracle_catches_another_map(mutant: Plot) -> None:
    with pytest.raises(AssertionError):
        check_each_cell_has_its_mean(mutant)


def test_numbers_are_read_on_dark_and_on_light_cells() -> None:
    ax = axes()
    needle_map(samples(), ax)
    assert {text.get_text(): text.get_color() for text in ax.texts} == {
        "100": "black",
        "50": "black",
        "25": "white",
        "0": "white",
    }


def test_arms_are_not_mixed_and_nothing_is_not_drawn() -> None:
    with pytest.raises(ValueError, match="one arm to a picture; got strategy, baseline"):
        needle_map(pd.concat([samples(), samples("baseline")]), axes())
    with pytest.raises(ValueError, match="nothing to draw"):
        needle_map(samples().assign(depth=None), axes())
