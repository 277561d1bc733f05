"""Times over the full cache's: each with its interval, the fastest on top, and hollow where they allow no verdict."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest

from kvbench.plots import time_ratios
from tests.mutants import results_plots as mutants
from tests.plots.drawing import axes
from tests.plots.test_latency import Plot
from tests.results.factory import baseline, frame, row

PREFILL = {"ttft_ratio": 1.4, "ttft_ratio_low": 1.3, "ttft_ratio_high": 1.5}
KNOWN = {"aa_low": 0.98, "aa_high": 1.01, **PREFILL}
RUNS = frame(
    [row("h2o", ratio=0.8, ratio_low=0.7, ratio_high=0.9, **KNOWN), baseline()],
    [row("quest", ratio=0.5, ratio_low=0.4, ratio_high=0.6, regime="overhead_bound", **KNOWN)],
    [row("late", ratio=0.1, ratio_low=0.1, ratio_high=0.1, status="timeout", reason="slow", **KNOWN)],
    [row("unsure", ratio=0.7, ratio_low=None, ratio_high=None)],
)


def check_times_by_hand(plot: Plot) -> None:
    """Two rows have an interval: 0.5 in [0.4, 0.6], hollow and on top, 0.8 in [0.7, 0.9], full; noise is grey."""
    ax = axes()
    table = plot(RUNS, ax)
    assert table.to_dict("list") == {
        "strategy": ["quest 25%", "h2o 25%"], "ratio": [0.5, 0.8], "low": [0.4, 0.7], "high": [0.6, 0.9],
        "is_overhead": [True, False],
    }  # fmt: skip
    points = [(np.asarray(line.get_xydata()), line.get_markerfacecolor()) for line in ax.get_lines()[1:]]
    drawn = [(xy[:, 0].tolist(), xy[0, 1], face) for xy, face in points]
    assert [(xs, y) for xs, y, _ in drawn] == [([0.4, 0.6], 1), ([0.5], 1), ([0.7, 0.9], 0), ([0.8], 0)]
    assert [face == "white" for xs, _, face in drawn if len(xs) == 1] == [True, False]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["quest 25%", "h2o 25%"]
    (noise,) = ax.patches
    assert [noise.get_x(), noise.get_x() + noise.get_width()] == pytest.approx([0.98, 1.01])  # type: ignore[attr-defined]


def test_times_by_hand() -> None:
    check_times_by_hand(time_ratios)


@pytest.mark.parametrize("mutant", mutants.TIMES)
def test_oracle_catches_other_times(mutant: Plot) -> None:
    with pytest.raises(AssertionError):
        check_times_by_hand(mutant)


def test_the_prefill_has_no_noise_of_its_own() -> None:
    ax = axes()
    assert time_ratios(RUNS, ax, column="ttft_ratio")["ratio"].tolist() == [1.4, 1.4]
    assert not ax.patches
    assert ax.get_xlabel() == "time of the prefill over the full cache's, with its 95% interval"
    ax.figure.savefig(BytesIO())  # type: ignore[union-attr]


def test_lengths_are_not_mixed_and_nothing_is_not_drawn() -> None:
    with pytest.raises(ValueError, match="one prompt_tokens to a picture; got 1024, 512"):
        time_ratios(frame([row("h2o")], [row("h2o", prompt_tokens=512)]), axes())
    with pytest.raises(ValueError, match="nothing to draw"):
        time_ratios(frame([baseline()]), axes())
