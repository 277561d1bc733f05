"""Which positions are held: the picture is the share of heads that hold each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from kvbench.plots import attention_lost, held_positions
from tests.mutants import results_plots as mutants
from tests.plots.drawing import axes

HELD = pd.DataFrame(
    [
        # step, layer, head, position
        (0, 0, 0, 0),
        (0, 0, 0, 1),
        (0, 0, 1, 1),
        (0, 1, 0, 0),
        (0, 1, 1, 2),
        (1, 0, 0, 3),
        (1, 0, 1, 3),
        (1, 1, 0, 3),
        (1, 1, 1, 0),
    ],
    columns=["step", "layer", "head", "position"],
)


def check_shares_are_of_heads(plot: Callable[..., pd.DataFrame]) -> None:
    """Two layers of two heads: a position held by one of four is a quarter dark, however often it is listed."""
    ax = axes()
    table = plot(pd.concat([HELD, HELD.iloc[:3]]), ax, rows="step")
    want = [[0.5, 0.5, 0.25, 0.0], [0.25, 0.0, 0.0, 0.75]]
    np.testing.assert_array_equal(picture(ax), want)
    told = np.zeros((2, 4))
    told[table["step"], table["position"]] = table["share"]
    np.testing.assert_array_equal(told, want)


def picture(ax: Axes) -> Any:
    return np.asarray(ax.images[0].get_array())


def test_shares_are_of_heads() -> None:
    check_shares_are_of_heads(held_positions)


@pytest.mark.parametrize("mutant", mutants.TRACES)
def test_oracle_catches_other_shares(mutant: Callable[..., pd.DataFrame]) -> None:
    with pytest.raises(AssertionError):
        check_shares_are_of_heads(mutant)


def test_rows_can_be_layers() -> None:
    ax = axes()
    held_positions(HELD[HELD["step"] == 0], ax, rows="layer")
    np.testing.assert_array_equal(picture(ax), [[0.5, 1.0, 0.0], [0.5, 0.0, 0.5]])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("position (tokens)", "layer")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "1"]


LOST = pd.DataFrame(
    [(1, 0, 0.1), (1, 1, 0.0), (2, 0, 0.3), (2, 1, 0.5), (3, 0, 1.0), (3, 1, 0.2)], columns=["step", "layer", "lost"]
)


def check_layers_go_down_and_steps_across(plot: Callable[[pd.DataFrame, Axes], pd.DataFrame]) -> None:
    """The first layer is on top, the first decoded token on the left; the darkest colour is everything."""
    ax = axes()
    table = plot(LOST.sample(frac=1, random_state=0), ax)
    want = [[0.1, 0.3, 1.0], [0.0, 0.5, 0.2]]
    np.testing.assert_array_equal(picture(ax), want)
    np.testing.assert_array_equal(table, want)
    assert ax.images[0].get_clim() == (0, 1)
    assert tuple(ax.images[0].get_extent()) == (0.5, 3.5, 1.5, -0.5)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("decode step", "layer")


def test_layers_go_down_and_steps_across() -> None:
    check_layers_go_down_and_steps_across(attention_lost)


@pytest.mark.parametrize("mutant", mutants.LOSSES)
def test_oracle_catches_other_losses(mutant: Callable[[pd.DataFrame, Axes], pd.DataFrame]) -> None:
    with pytest.raises(AssertionError):
        check_layers_go_down_and_steps_across(mutant)


def test_nothing_decoded_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to draw: no token was decoded"):
        attention_lost(LOST.iloc[:0], axes())


def test_an_empty_trace_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to draw: no entry is held"):
        held_positions(HELD.iloc[:0], axes())
