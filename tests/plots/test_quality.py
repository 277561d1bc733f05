"""What memory buys: the front holds what nothing else beats with as few bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from kvbench.plots import quality_against_memory
from tests.mutants import results_plots as mutants
from tests.plots.drawing import axes
from tests.plots.test_latency import Plot
from tests.results.factory import MIB, baseline, frame, row, without_quality


def runs_of(points: list[tuple[str, int, float]]) -> pd.DataFrame:
    return frame(*[[row(name, kv_allocated_bytes=size, nll_delta_nats=loss)] for name, size, loss in points])


def front_by_definition(points: list[tuple[str, int, float]]) -> set[str]:
    """Return who is beaten by nobody, by asking everybody."""
    return {
        f"{name} 25%"
        for name, size, loss in points
        if not any(s <= size and v <= loss and (s, v) != (size, loss) for _, s, v in points)
    }


def check_the_front_is_beaten_by_nobody(plot: Plot) -> None:
    """On many random clouds with ties in both directions, the front is the one the definition gives."""
    random = np.random.default_rng(0)
    for _ in range(12):
        values = random.integers(1, 5, (6, 2))
        cells = {(int(size), float(loss)) for size, loss in values}
        points = [(f"s{index}", size * MIB, loss / 8) for index, (size, loss) in enumerate(sorted(cells))]
        random.shuffle(points)
        table = plot(runs_of(points), axes())
        assert set(table.loc[table["is_on_front"], "strategy"]) == front_by_definition(points)


def test_the_front_is_beaten_by_nobody() -> None:
    check_the_front_is_beaten_by_nobody(quality_against_memory)


@pytest.mark.parametrize("mutant", mutants.FRONTS)
def test_oracle_catches_another_front(mutant: Plot) -> None:
    with pytest.raises(AssertionError):
        check_the_front_is_beaten_by_nobody(mutant)


@pytest.mark.parametrize(
    ("column", "front"),
    [("nll_delta_nats", {"h2o 25%", "baseline"}), ("recall_key_value", {"snapkv 25%", "baseline"})],
)
def test_better_is_down_for_losses_and_up_for_recall(column: Any, front: set[str]) -> None:
    runs = frame(
        [row("h2o", nll_delta_nats=0.1, recall_key_value=0.5), baseline()],
        [row("snapkv", nll_delta_nats=0.2, recall_key_value=0.9), baseline()],
    )
    ax = axes()
    table = quality_against_memory(runs, ax, column=column)
    assert set(table.loc[table["is_on_front"], "strategy"]) == front
    assert len(table) == 3
    assert ax.get_ylim()[0] <= 0
    assert {text.get_text() for text in ax.texts} == {"baseline", "h2o 25%", "snapkv 25%"}


def test_names_of_neighbours_do_not_lie_on_each_other() -> None:
    ax = axes()
    quality_against_memory(runs_of([(name, MIB, 0.1) for name in ("a", "b", "c", "d")] + [("e", MIB, 0.9)]), ax)
    heights = sorted(text.get_position()[1] for text in ax.texts)
    assert np.diff(heights).min() >= 0.049 * (ax.get_ylim()[1] - ax.get_ylim()[0])


def test_random_weights_have_no_place_and_workloads_are_not_mixed() -> None:
    with pytest.raises(ValueError, match="nothing to draw: no row has these numbers"):
        quality_against_memory(frame([without_quality(row("h2o"))]), axes())
    with pytest.raises(ValueError, match="one prompt_tokens to a picture; got 1024, 512"):
        quality_against_memory(frame([row("h2o")], [row("h2o", prompt_tokens=512)]), axes())
