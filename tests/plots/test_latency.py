"""Time per token against context: the steps that count, in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.axes import Axes

from kvbench.plots import decode_latency
from tests.mutants import results_plots as mutants
from tests.plots.drawing import axes, lines, tree

Plot = Callable[[pd.DataFrame, Axes], pd.DataFrame]


def check_the_steps_that_count_are_drawn(plot: Plot, runs: Path) -> None:
    """Neither first steps, nor disturbed blocks, nor the baseline's second name are in the line."""
    _, steps = tree(runs)
    ax = axes()
    table = plot(steps, ax)
    assert lines(ax) == {"baseline": [(256, 5.0), (512, 8.0)], "h2o 25%": [(256, 3.0), (512, 4.0)]}
    assert table.to_dict("list") == {
        "strategy": ["baseline", "baseline", "h2o 25%", "h2o 25%"],
        "context": [256, 512, 256, 512],
        "p10": [5.0, 8.0, 3.0, 4.0],
        "p50": [5.0, 8.0, 3.0, 4.0],
        "p90": [5.0, 8.0, 3.0, 4.0],
    }
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("context (tokens)", "time per decode step (ms)")
    assert ax.get_ylim()[0] == 0


def test_the_steps_that_count_are_drawn(tmp_path: Path) -> None:
    check_the_steps_that_count_are_drawn(decode_latency, tmp_path)


@pytest.mark.parametrize("mutant", mutants.LATENCIES)
def test_oracle_catches_steps_that_do_not_count(mutant: Plot, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check_the_steps_that_count_are_drawn(mutant, tmp_path)


def test_a_devices_clock_goes_before_the_hosts(tmp_path: Path) -> None:
    _, steps = tree(tmp_path)
    table = decode_latency(steps.assign(event_ms=1.5), axes())
    assert table["p50"].unique().tolist() == [1.5]


def test_a_band_holds_the_middle_of_the_steps(tmp_path: Path) -> None:
    _, steps = tree(tmp_path)
    ours = steps[(steps["arm"] == "strategy") & (steps["index_in_block"] > 0) & steps["is_clean"]]
    spread = steps.assign(wall_ns=steps["wall_ns"].mask(steps.index == ours.index[0], 13_000_000))
    table = decode_latency(spread, axes()).set_index(["strategy", "context"])
    first = table.loc["h2o 25%", 256]
    assert first.tolist() == pytest.approx([3.0, 3.0, 3.0 + 0.7 * 10.0])  # of 3, 3, 3, 13


def test_models_are_not_mixed(tmp_path: Path) -> None:
    _, steps = tree(tmp_path)
    with pytest.raises(ValueError, match=r"one model to a picture; got tiny, gpt2\. Keep the rows of one"):
        decode_latency(pd.concat([steps, steps.assign(model="gpt2")]), axes())
    with pytest.raises(ValueError, match="nothing to draw"):
        decode_latency(steps.assign(phase="prefill"), axes())
