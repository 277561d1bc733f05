"""What pages are used for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.axes import Axes

from kvbench.plots import named_by_page, page_utilisation
from tests.mutants import results_plots as mutants
from tests.plots.drawing import axes, lines, study, tree

Naming = Callable[[pd.DataFrame, pd.DataFrame], pd.DataFrame]
HELD = {256: 320, 500: 564}


def check_pages_are_named(naming: Naming, runs: Path) -> None:
    """The arm whose slots lie in pages is named by their size, in runs and in steps; no other is."""
    loaded, timed = study(runs)
    for frame in (loaded, timed):
        named = naming(frame, loaded)
        pairs = set(zip(named["arm"], named["strategy"], named["page_tokens"].fillna(0), strict=True))
        arms = {arm for arm in frame["arm"].unique() if arm != "strategy"}
        theirs = {(arm, "baseline", 0) for arm in arms}
        mine = {("baseline", 0), ("no_cache", 0), ("paged 16", 16), ("paged 256", 256)}
        assert pairs == theirs | {("strategy", *each) for each in mine}


def test_pages_are_named(tmp_path: Path) -> None:
    check_pages_are_named(named_by_page, tmp_path)


def check_use_is_drawn(plot: Callable[[pd.DataFrame, Axes], pd.DataFrame], runs: Path) -> None:
    """Each length has a line of the share of slots that hold entries."""
    loaded, _ = study(runs)
    ax = axes()
    table = plot(named_by_page(loaded, loaded), ax)
    want = [(tokens, size, held / (-(-held // size) * size)) for tokens, held in HELD.items() for size in (16, 256)]
    assert [tuple(row) for row in table.itertuples(index=False)] == want
    drawn = {f"{tokens} tokens": [(size, share) for at, size, share in want if at == tokens] for tokens in HELD}
    assert lines(ax) == drawn
    assert ax.get_xticks().tolist() == [16, 256]


def test_use_is_drawn(tmp_path: Path) -> None:
    check_use_is_drawn(page_utilisation, tmp_path)


def test_oracles_catch_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check_pages_are_named(mutants.both_arms_named, tmp_path / "a")
    with pytest.raises(AssertionError):
        check_use_is_drawn(mutants.waste_drawn, tmp_path / "b")


def test_runs_without_pages_are_refused(tmp_path: Path) -> None:
    measured, _ = tree(tmp_path)
    with pytest.raises(ValueError, match="nothing to draw: no row has these numbers"):
        page_utilisation(named_by_page(measured, measured), axes())
