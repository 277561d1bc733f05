"""Where bytes lie, how long requests wait, and what is compared."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from kvbench import plots
from kvbench.plots.rows import times_of
from tests.mutants import results_plots as mutants
from tests.plots.drawing import axes, served
from tests.results.factory import MIB, baseline, failed, frame, row

Plot = Callable[[pd.DataFrame, Axes], pd.DataFrame]
NO_BUDGET = {"budget_unit": None, "budget_amount": None}


def away() -> pd.DataFrame:
    """Return runs that keep nothing, half or all of a cache elsewhere, one of them at a shorter prompt too."""
    half = {"kv_allocated_bytes": 4 * MIB, "host_bytes": 4 * MIB, **NO_BUDGET}
    whole = {"kv_allocated_bytes": MIB, "host_bytes": MIB, "disk_bytes": 6 * MIB, **NO_BUDGET}
    return frame(
        [row("flexgen", **half), baseline(kv_allocated_bytes=8 * MIB)],
        [row("disk", **whole)],
        [row("flexgen", **{**half, "prompt_tokens": 16, "kv_allocated_bytes": 9})],
    )


def check_bytes_lie_end_to_end(plot: Plot) -> None:
    """A bar's parts are the bytes of each place, one behind the other, for the longest prompt."""
    ax = axes()
    table = plot(away(), ax).set_index("strategy")
    assert table.to_dict("index") == {
        "baseline": {"kv_allocated_bytes": 8 * MIB, "host_bytes": 0, "disk_bytes": 0},
        "flexgen": {"kv_allocated_bytes": 4 * MIB, "host_bytes": 4 * MIB, "disk_bytes": 0},
        "disk": {"kv_allocated_bytes": MIB, "host_bytes": MIB, "disk_bytes": 6 * MIB},
    }
    bars: dict[float, list[tuple[float, float]]] = {}
    for bar in ax.patches:
        bars.setdefault(bar.get_y(), []).append((bar.get_x(), bar.get_width()))  # type: ignore[attr-defined]
    places = {text.get_text(): y for text, y in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True)}
    assert bars[places["disk"] - 0.4] == [(0, 1), (1, 1), (2, 6)]
    assert ax.get_xlabel() == "bytes of the cache (MiB)"


def test_bytes_lie_end_to_end() -> None:
    check_bytes_lie_end_to_end(plots.where_bytes_lie)


def test_caches_that_lie_where_they_are_used_are_not_drawn() -> None:
    with pytest.raises(ValueError, match=r"nothing lies elsewhere: run .experiment=offload_study"):
        plots.where_bytes_lie(frame([row("h2o"), baseline()]), axes())


def requests() -> pd.DataFrame:
    """Return two requests as a scheduler and as the baseline served them."""
    known = {"strategy": "mine", "model": "tiny", "workload": "requests", "device_name": "AMD", **NO_BUDGET}
    return pd.DataFrame(served([1.0, 0.5])).assign(**known)


def check_waits(plot: Plot) -> None:
    """Shares rise with the time from arrival to first token; the baseline's are its own."""
    table = plot(requests(), axes())
    assert [tuple(line) for line in table.itertuples(index=False)] == [
        ("baseline", 1.0, 0.5),
        ("baseline", 2.0, 1.0),
        ("mine", 0.5, 0.5),
        ("mine", 1.0, 1.0),
    ]


def test_shares_rise_with_the_wait() -> None:
    check_waits(plots.first_tokens)


def pairs() -> pd.DataFrame:
    """Return what a comparison found: one side faster, slower, or nobody knows, and reading a prompt."""
    found = [("h2o", 0.8, 0.7, 0.9), ("tova", 1.2, 1.1, 1.3), ("knorm", 1.0, 0.9, 1.1)]
    table = pd.DataFrame(found, columns=["strategy_a", "ratio", "low", "high"]).assign(phase="decode")
    table = pd.concat([table, table.assign(phase="prefill", ratio=9.0, low=9.0, high=9.0)])
    return table.assign(strategy_b="baseline", model="tiny", batch_size=1, device_name="AMD", prompt_tokens=256)


def check_claims(plot: Plot) -> None:
    """An interval beyond 1 has the colour and the arrow of its side; one with 1 in it neither."""
    ax = axes()
    table = plot(pairs(), ax)
    assert table["name"].tolist() == ["h2o / baseline", "tova / baseline", "knorm / baseline"]
    marks = [(line.get_xdata()[0], line.get_marker()) for line in ax.get_lines() if len(line.get_xdata()) == 1]  # type: ignore[arg-type,index]
    assert marks == [(0.8, "<"), (1.2, ">"), (1.0, "o")]


def test_an_interval_beyond_1_is_a_claim() -> None:
    check_claims(plots.compared)


@pytest.mark.parametrize(("check", "mutant"), mutants.ELSEWHERE)
def test_oracle_catches_other_pictures(check: str, mutant: Plot) -> None:
    with pytest.raises(AssertionError):
        globals()[check](mutant)


def test_what_belongs_together_is_drawn_together_and_failures_stay() -> None:
    lost = {"device_name": None, "batch_size": 1}
    runs = frame(
        [row("h2o"), baseline()],
        [row("h2o", model="gpt2"), baseline(model="gpt2")],
        [row("tova", model="gpt2")],
        [failed("cake", "out_of_memory", "no room", model="gpt2", **lost)],
    )
    found = plots.kinds(runs)
    assert found[["model", "runs"]].to_numpy().tolist() == [["gpt2", 2], ["tiny", 1]]
    assert plots.of_kind(runs, found.iloc[0])["strategy"].tolist() == ["h2o", "baseline", "tova", "cake"]
    assert plots.of_kind(runs, found.iloc[1])["strategy"].tolist() == ["h2o", "baseline"]
    assert plots.kinds(runs[runs["strategy"] == "cake"])["model"].tolist() == ["gpt2"]


def test_a_picture_that_cannot_be_drawn_says_why_in_its_place() -> None:
    runs = frame([row("h2o"), baseline()])
    left, right = plots.panels(
        runs,
        lambda ax: plots.memory_against_context(runs, ax),
        lambda ax: plots.page_utilisation(plots.named_by_page(runs, runs), ax),
    )
    figure = plt.gcf()
    (text,) = figure.axes[1].texts
    plt.close(figure)
    assert (len(left), len(right)) == (2, 0)
    assert text.get_text().replace("\n", " ").startswith("Not drawn: nothing to draw: no row has these numbers.")
    assert len(figure.axes[0].texts) == 0
    assert "tiny (embedded, float32) on AMD EPYC, 1 thread; commit unknown" in figure.get_supxlabel()


def test_medians_stand_in_where_there_are_no_pairs() -> None:
    rows = pd.DataFrame({"ratio": [0.5, None], "decode_p50_ms": [1.0, 6.0], "decode_p50_ms_full": [4.0, 3.0]})
    found = times_of(rows.assign(ratio_low=np.nan, ratio_high=np.nan))
    assert found["time"].tolist() == [0.5, 2.0]
    assert found["is_paired"].tolist() == [True, False]
