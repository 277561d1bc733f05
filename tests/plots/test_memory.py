"""Bytes against context."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from kvbench.plots import memory_against_context
from tests.mutants import results_plots as mutants
from tests.plots.drawing import axes, lines, tree
from tests.plots.test_latency import Plot
from tests.results.factory import MIB, failed, frame


def check_bytes_are_drawn_in_their_unit(plot: Plot, runs: Path) -> None:
    """The axis says MiB and the points are MiB; the table holds bytes."""
    measured, _ = tree(runs)
    ax = axes()
    table = plot(measured, ax)
    assert lines(ax) == {"baseline": [(256, 1.0), (512, 2.0)], "h2o 25%": [(256, 0.25), (512, 0.5)]}
    assert table["bytes"].tolist() == [MIB, 2 * MIB, MIB // 4, MIB // 2]
    assert ax.get_ylabel() == "cache allocated (MiB)"
    assert ax.get_ylim()[0] == 0
    assert ax.get_xticks().tolist() == [512, 256]


def test_bytes_are_drawn_in_their_unit(tmp_path: Path) -> None:
    check_bytes_are_drawn_in_their_unit(memory_against_context, tmp_path)


def test_oracle_catches_megabytes(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check_bytes_are_drawn_in_their_unit(mutants.in_megabytes, tmp_path)


def test_the_peak_can_be_drawn_instead(tmp_path: Path) -> None:
    measured, _ = tree(tmp_path)
    ax = axes()
    table = memory_against_context(measured, ax, column="peak_bytes")
    assert table["bytes"].tolist() == [40 * MIB] * 2 + [13 * MIB] * 2
    assert ax.get_ylabel() == "peak above the idle model (MiB)"


def test_runs_without_numbers_are_left_out_and_devices_not_mixed(tmp_path: Path) -> None:
    measured, _ = tree(tmp_path)
    more = pd.concat([measured, frame([failed("tova", "timeout", "600 s", model="gpt2")])])
    assert set(memory_against_context(more, axes())["strategy"]) == {"baseline", "h2o 25%"}
    with pytest.raises(ValueError, match="one device_name to a picture; got AMD EPYC, H200"):
        memory_against_context(pd.concat([measured, measured.assign(device_name="H200")]), axes())
    with pytest.raises(ValueError, match="nothing to draw: no row has these numbers"):
        memory_against_context(measured.assign(status="error"), axes())
