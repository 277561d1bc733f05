"""Many methods beside each other: whose numbers stand on which line, and what they are over."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from benchmarks import survey25
from benchmarks.survey25 import check_apart, lines
from kvbench import plots
from kvbench.cli.catalogue import aliases
from kvbench.plots.rows import method_rows
from kvbench.results.records import step_table, to_frame
from tests.mutants import results_plots as mutants
from tests.plots.drawing import axes
from tests.results.factory import MIB, baseline, failed, frame, row, steps

KINDS = {
    "h2o": "selection",
    "tova": "selection",
    "int8": "quantization",
    "int8_again": "quantization",
    "vllm": "system",
}
NO_BUDGET = {"budget_unit": None, "budget_amount": None}
Plot = Callable[[pd.DataFrame, Axes], pd.DataFrame]


def run(name: str, *, full: float = 10.0, config: str = "", **values: Any) -> list[dict[str, object]]:
    """Return both arms of a method whose configuration is its own, or one that is named."""
    shared = {"workload": values.pop("workload", "decode"), "config_json": json.dumps(config or name)}
    theirs = baseline(decode_p50_ms=full, kv_allocated_bytes=8 * MIB, tokens_per_s=1000 / full, **shared)
    if "status" in values:
        return [failed(name, values["status"], "it is not there", fidelity="exact", **NO_BUDGET, **shared), theirs]
    known = {"tokens_per_s": 100.0, "recall_samples": 32, "engine": "eager", "git_commit": "0123456789", **NO_BUDGET}
    return [row(name, **{**known, **shared, **values}), theirs]


def survey() -> pd.DataFrame:
    """Return seven methods of four kinds, one of them under two names, one without pairs, one that is not there."""
    unpaired: dict[str, Any] = {"ratio": None, "ratio_low": None, "ratio_high": None, "decode_p50_ms": 30.0}
    runs = frame(
        run("h2o", kv_allocated_bytes=2 * MIB, nll_delta_nats=0.2),
        run("int8", kv_allocated_bytes=4 * MIB, config="int8", nll_delta_nats=0.01),
        run("tova", full=20.0, kv_allocated_bytes=MIB, nll_delta_nats=None, **unpaired),
        run("vllm", status="unavailable"),
        run("int8_again", kv_allocated_bytes=4 * MIB, config="int8", nll_delta_nats=0.01),
        run("mine", workload="requests", engine="batcher", kv_allocated_bytes=8 * MIB, tokens_per_s=400.0),
        run("baseline", kv_allocated_bytes=8 * MIB),
    )
    return runs.assign(category=runs["strategy"].map(KINDS))


def check_rows(made: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Methods stand below those of their kind, each beside the baseline of its own run, kinds a line apart."""
    table = made(survey()).set_index("label")
    assert table["kind"].to_dict() == {
        "h2o": "selection",
        "tova": "selection",
        "int8": "quantization",
        "int8_again": "quantization",
        "vllm": "system",
        "mine": "reference, requests",
        "baseline": "reference",
    }
    assert table["place"].tolist() == [1, 2, 4, 5, 7, 9, 11]
    assert table["decode_p50_ms_full"].fillna(0).tolist() == [10, 20, 10, 10, 0, 10, 10]
    assert table["same_as"].to_dict() == dict.fromkeys(table.index, "") | {"int8": "int8_again", "int8_again": "int8"}


def test_methods_stand_below_those_of_their_kind_beside_their_own_baseline() -> None:
    check_rows(method_rows)


def points(ax: Axes) -> set[tuple[float, float]]:
    """Return where single marks stand, rounded."""
    single = [line.get_xydata() for line in ax.get_lines() if len(np.atleast_1d(line.get_xdata())) == 1]
    return {(round(float(x), 4), round(float(y), 4)) for ((x, y),) in map(np.asarray, single)}


def check_times(plot: Plot) -> None:
    """Each median and its own baseline's stand on the method's line; what is not there says why."""
    ax = axes()
    table = plot(survey(), ax).set_index("strategy")
    assert table.loc["h2o", ["p50", "p90", "baseline_p50"]].tolist() == [7.7, 13.1, 10.0]
    assert {(7.7, 1.0), (10.0, 1.0), (30.0, 2.0), (20.0, 2.0)} <= points(ax)
    names = {text.get_text(): y for text, y in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True)}
    assert (names["h2o"], names["tova"], names["selection"], names["vllm"]) == (1, 2, 0, 7)
    assert [text.get_text() for text in ax.texts] == ["unavailable"]
    assert ax.get_xlabel() == "time per decode step (ms)"


def test_each_median_stands_beside_its_own_baselines() -> None:
    check_times(plots.step_times)


def check_bytes(plot: Plot) -> None:
    """Caches stand at their bytes, in the unit that the axis names, and so do the same run's full ones."""
    ax = axes()
    plot(survey(), ax)
    assert {(2.0, 1.0), (1.0, 2.0), (4.0, 4.0), (4.0, 5.0), (8.0, 9.0), (8.0, 11.0)} <= points(ax)
    (full,) = (line for line in ax.get_lines() if line.get_marker() == "|")
    drawn = {(x, y) for x, y in np.asarray(full.get_xydata()).tolist() if x == x}
    assert drawn == {(8.0, place) for place in (1, 2, 4, 5, 9, 11)}
    assert ax.get_xlabel() == "memory (MiB)"


def test_caches_stand_at_their_bytes() -> None:
    check_bytes(plots.bytes_held)


def check_trade_off(plot: Plot) -> None:
    """Bytes and times are over the same run's baseline, pairs go before medians, and marks say what is lost."""
    ax = axes()
    table = plot(survey(), ax).set_index("strategy")
    assert table.loc["h2o", ["bytes", "time", "low", "high", "is_paired"]].tolist() == [0.25, 0.614, 0.603, 0.627, True]
    assert table.loc["tova", ["bytes", "time", "is_paired"]].tolist() == [0.125, 1.5, False]
    assert "vllm" not in table.index
    marks = {line.get_xdata()[0]: (line.get_marker(), line.get_markerfacecolor()) for line in ax.get_lines()}  # type: ignore[index]
    assert marks[0.25][1] == "white" != marks[0.5][1]
    assert marks[0.125][0] == "x"
    named = {text.get_text(): text.get_position()[1] for text in ax.texts}
    assert set(named) == set(table.index)
    assert np.diff(sorted(named.values())).min() > 0.1


def test_time_and_bytes_are_over_the_same_runs_baseline() -> None:
    check_trade_off(plots.trade_off)


def check_kinds(plot: Plot) -> None:
    """A kind's bar is the median of its methods, and the line reaches from the least to the most."""
    table = plot(survey(), axes()).set_index(["kind", "measure"])
    columns = ["median", "low", "high", "methods"]
    assert table.loc[("selection", "bytes"), columns].tolist() == [0.1875, 0.125, 0.25, 2]
    assert table.loc[("selection", "time"), columns].tolist() == pytest.approx([1.057, 0.614, 1.5, 2])
    assert ("system", "time") not in table.index


def test_a_kinds_bar_is_the_median_of_its_methods() -> None:
    check_kinds(plots.by_category)


def timed(name: str, ms: Sequence[float], run_id: str) -> pd.DataFrame:
    """Return a run's steps, blocks of three of which the first took far longer."""
    mine = to_frame(step_table(steps([[99.0, each, each] for each in ms]), run_id=run_id))
    return mine.assign(sweep="adhoc", strategy=name)


def check_throughput(plot: Callable[[pd.DataFrame, pd.DataFrame, Axes], pd.DataFrame]) -> None:
    """Whoever makes tokens in a way of its own stands beside the full cache; the line is that of blocks."""
    blocks = pd.concat([timed("mine", [8.0, 10.0, 12.0], "r5"), timed("baseline", [10.0, 10.0, 10.0], "r6")])
    table = plot(survey(), blocks, axes()).set_index("strategy")
    assert table.index.tolist() == ["mine", "baseline"]
    assert table.loc["mine", ["tokens_per_s", "low", "high"]].tolist() == pytest.approx([400, 400 / 1.16, 400 / 0.84])
    assert table.loc["baseline", ["low", "high"]].tolist() == pytest.approx([100, 100])


def test_the_line_of_a_throughput_is_that_of_blocks() -> None:
    check_throughput(plots.throughput)


def check_overview(plot: Plot) -> None:
    """Four panels share the lines of methods; an interval's ends are 1.96 standard errors, theirs, from the share."""
    figure = Figure(layout="constrained")
    table = plot(survey(), figure.subplots()).set_index("strategy")
    for ax, name in zip(figure.axes, ("time", "bytes", "loss", "recall"), strict=True):
        assert (round(float(table.loc["h2o", name]), 4), 1.0) in points(ax)
    share, ends = 0.703, table.loc["h2o", ["recall_low", "recall_high"]]
    assert ends["recall_low"] < share < ends["recall_high"]
    for end in ends:
        assert abs(end - share) == pytest.approx(1.96 * np.sqrt(end * (1 - end) / 32))


def test_four_panels_share_the_lines_of_methods() -> None:
    check_overview(plots.overview)


def test_what_random_weights_do_not_have_has_no_panel() -> None:
    figure = Figure(layout="constrained")
    plots.overview(survey().assign(nll_delta_nats=np.nan, recall_key_value=np.nan), figure.subplots())
    assert [ax.get_xlabel().split("\n")[0] for ax in figure.axes] == ["time of a step", "bytes of the cache"]


@pytest.mark.parametrize(("check", "mutant"), mutants.METHODS)
def test_oracle_catches_what_is_another_methods(check: str, mutant: Callable[..., pd.DataFrame]) -> None:
    with pytest.raises(AssertionError):
        globals()[check](mutant)


def test_a_caption_says_where_numbers_come_from() -> None:
    known = survey()
    assert plots.caption(known[known["strategy"] == "h2o"]) == (
        "tiny (embedded, float32) on AMD EPYC, 1 thread; commit 0123456"
    )


def test_models_are_not_mixed() -> None:
    known = survey()
    with pytest.raises(ValueError, match="one model to a picture; got tiny, gpt2"):
        plots.step_times(pd.concat([known, known.assign(model="gpt2")]), axes())


def test_the_surveys_table_has_a_line_for_each_name() -> None:
    table = lines(survey(), {"int8": "int8_again, 1.010 [0.990, 1.030]"}).set_index("strategy")
    assert table.loc["vllm", "says"] == "unavailable: it is not there"
    assert table.loc["int8", "says"] == "the same as int8_again, 1.010 [0.990, 1.030]"
    assert table.loc["tova", ["KV", "of full", "step ms (full)", "ratio", "loss"]].tolist() == [
        "1.00 MiB",
        "12.5%",
        "30.0 (20.0)",
        "-",
        "-",
    ]
    assert table.loc["h2o", ["ratio", "loss", "recall"]].tolist() == ["0.614 [0.603, 0.627]", "+0.200", "70%"]


def test_runs_that_are_the_same_are_refused() -> None:
    known = survey()
    apart = pd.concat([timed("int8", [1.0, 2.0], "r1"), timed("int8_again", [1.0, 2.1], "r4")])
    check_apart(known, apart, {"int8": "int8_again"})
    with pytest.raises(ValueError, match="int8 and int8_again are one configuration, and no yaml says so"):
        check_apart(known, apart, {"int8": "h2o"})
    alike = pd.concat([timed("int8", [1.0, 2.0], "r1"), timed("int8_again", [1.0, 2.0], "r4")])
    with pytest.raises(ValueError, match=r"the very same samples: \['r1', 'r4'\]"):
        check_apart(known, alike, {"int8": "int8_again"})


def test_the_survey_that_is_committed_has_every_name_and_none_twice() -> None:
    folder = Path(survey25.__file__).parent / "results" / "survey25"
    runs, steps_of = (pd.read_parquet(folder / f"{name}.parquet") for name in ("runs", "steps"))
    check_apart(runs, steps_of, aliases())
    mine = runs[runs["arm"] == "strategy"].set_index("strategy")
    experiment = OmegaConf.load(str(files("kvbench.conf") / "experiment" / "survey25.yaml"))
    assert set(mine.index) == set(experiment.hydra.sweeper.params.strategy.split(","))
    assert set(mine["evidence"]) == {"measured"}
    assert set(mine.index[mine["status"] != "ok"]) <= {"vllm"}
