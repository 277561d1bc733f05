"""Ratios of runs come from the timed steps, each run measured against its own baseline."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kvbench.measure.samples import Sample
from kvbench.measure.statistics import ratio_interval
from kvbench.results import compare as module
from kvbench.results.compare import compare, round_ratios
from kvbench.results.load import load
from kvbench.results.records import Record
from tests.mutants import results_compare as mutants
from tests.results.factory import MIB, baseline, row, steps, write

Ratios = Callable[[pd.DataFrame], pd.Series]
SLOW_FIRST = 99.0


def pair(strategy: str, **values: object) -> list[dict[str, object]]:
    return [row(strategy, **values), baseline(**{name: values[name] for name in values if name != "statistic"})]


def timed(ours: list[list[float]], theirs: list[list[float]]) -> list[dict[str, object]]:
    """Return the steps of two arms, each block behind a first step that does not count."""
    slow = [[[SLOW_FIRST, *block] for block in blocks] for blocks in (ours, theirs)]
    return [*steps(slow[0]), *steps(slow[1], arm="baseline"), *steps(slow[1], arm="baseline_again")]


def check_ratios_by_hand(ratios: Ratios, runs: Path) -> None:
    """Two rounds in which both were clean, one in which one was not: 2/4 and 9/6 by median, 3/5 and 9/6 by mean."""
    records = timed([[2.0, 2.0, 5.0], [9.0, 9.0, 9.0], [1.0, 1.0, 1.0]], [[4.0, 4.0, 7.0], [6.0, 6.0, 6.0], [8.0] * 3])
    dirty = [{**record, "is_clean": not (record["arm"] == "strategy" and record["round"] == 2)} for record in records]
    write(runs, "r0", pair("h2o"), dirty)
    write(runs, "r1", pair("h2o", statistic="mean"), dirty)
    found = ratios(load(runs, steps=True))
    assert found.loc["adhoc", "r0", "decode"].to_dict() == {0: 0.5, 1: 1.5}
    assert found.loc["adhoc", "r1", "decode"].to_dict() == {0: 0.6, 1: 1.5}


def test_ratios_by_hand(tmp_path: Path) -> None:
    check_ratios_by_hand(round_ratios, tmp_path)


@pytest.mark.parametrize("mutant", mutants.RATIOS)
def test_oracle_catches_other_ratios(mutant: Ratios, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check_ratios_by_hand(mutant, tmp_path)


def test_a_block_of_one_step_counts_and_the_devices_clock_goes_before_the_hosts(tmp_path: Path) -> None:
    ours = [{**record, "event_ms": 3.0} for record in steps([[1.0]])]
    theirs = [{**record, "event_ms": 4.0} for record in steps([[1.0]], arm="baseline")]
    write(tmp_path, "r0", pair("h2o"), [*ours, *theirs])
    assert round_ratios(load(tmp_path, steps=True)).tolist() == [0.75]


def random_blocks(seed: int, ms: float) -> list[list[float]]:
    noise = np.random.default_rng(seed).gamma(2.0, 0.1, (12, 8))
    blocks: list[list[float]] = (ms * (1 + noise)).round(6).tolist()
    return blocks


@pytest.mark.parametrize("statistic", ["median", "mean"])
def test_an_interval_from_parquet_is_the_one_that_was_measured(statistic: Any, tmp_path: Path) -> None:
    records = timed(random_blocks(1, 3.0), random_blocks(2, 4.0))
    write(tmp_path, "r0", pair("h2o", statistic=statistic), records)
    names = Sample.__dataclass_fields__
    samples = [Sample(**{name: record[name] for name in names}) for record in numbered(records)]  # type: ignore[arg-type]
    measured = ratio_interval(samples, "strategy", "baseline", statistic)
    assert measured is not None
    found = compare(tmp_path, tmp_path).iloc[0]
    np.testing.assert_allclose(
        found[["ratio_a", "low_a", "high_a"]].astype(float), [measured.value, measured.low, measured.high], rtol=1e-12
    )


def numbered(records: list[dict[str, object]]) -> list[Record]:
    """Return the records with a block number of its own for every arm and round."""
    blocks: dict[tuple[object, object], int] = {}
    return [{**record, "block": blocks.setdefault((record["arm"], record["round"]), len(blocks))} for record in records]


def check_a_drifting_machine_cancels(comparer: Callable[[Path, Path], pd.DataFrame], runs: Path) -> None:
    """On a day on which everything takes twice as long, the same two strategies compare as before."""
    ours, theirs = random_blocks(1, 3.0), random_blocks(2, 4.0)
    write(runs / "monday", "r0", pair("h2o"), timed(ours, theirs))
    slow = [[[2 * ms for ms in block] for block in blocks] for blocks in (random_blocks(3, 3.0), random_blocks(4, 4.0))]
    write(runs / "friday", "r1", pair("snapkv"), timed(*slow))
    found = comparer(runs / "monday", runs / "friday").iloc[0]
    assert found[["strategy_a", "strategy_b"]].tolist() == ["h2o 25%", "snapkv 25%"]
    assert found["ratio"] == pytest.approx(1.0, abs=0.05)
    assert found["low"] < found["ratio"] < found["high"]
    assert found["ratio"] == pytest.approx(found["ratio_a"] / found["ratio_b"], rel=1e-12)


def test_a_drifting_machine_cancels(tmp_path: Path) -> None:
    check_a_drifting_machine_cancels(compare, tmp_path)


def test_oracle_catches_times_compared_across_days(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check_a_drifting_machine_cancels(mutants.times_across_days, tmp_path)


def test_an_interval_is_as_wide_as_both_sides_make_it(tmp_path: Path) -> None:
    still, loud = [[4.0] * 3] * 12, random_blocks(1, 3.0)
    write(tmp_path / "a", "r0", pair("h2o"), timed(loud, still))
    write(tmp_path / "b", "r1", pair("h2o"), timed(still, still))
    one = compare(tmp_path / "a", tmp_path / "b").iloc[0]
    both = compare(tmp_path / "a", tmp_path / "a").iloc[0]
    assert (one["low"], one["high"]) == (one["low_a"], one["high_a"])
    assert both["low"] < 1 < both["high"]


def test_trees_meet_where_model_and_lengths_agree(tmp_path: Path) -> None:
    records = timed(random_blocks(1, 3.0), random_blocks(2, 4.0))
    for number, (strategy, tokens) in enumerate([("h2o", 256), ("h2o", 512), ("snapkv", 256)]):
        write(tmp_path, f"r{number}", pair(strategy, prompt_tokens=tokens), records)
    found = compare(tmp_path, tmp_path)
    met = sorted(found[["prompt_tokens", "run_id_a", "run_id_b"]].to_numpy().tolist())
    assert met == [[256, "r0", "r0"], [256, "r0", "r2"], [256, "r2", "r0"], [256, "r2", "r2"], [512, "r1", "r1"]]


@pytest.mark.parametrize("values", [{"comparison": "unpaired"}, {"comparison": "none"}])
def test_runs_without_a_baseline_beside_them_are_refused(values: Mapping[str, object], tmp_path: Path) -> None:
    write(tmp_path, "r0", pair("h2o", **values), timed(random_blocks(1, 3.0), random_blocks(2, 4.0)))
    with pytest.raises(ValueError, match="was timed beside a baseline for two rounds: use compare=baseline"):
        compare(tmp_path, tmp_path)


def test_runs_with_nothing_in_common_are_refused(tmp_path: Path) -> None:
    records = timed(random_blocks(1, 3.0), random_blocks(2, 4.0))
    write(tmp_path / "a", "r0", pair("h2o", model="tiny"), records)
    write(tmp_path / "b", "r0", pair("h2o", model="gpt2"), records)
    write(tmp_path / "b", "r1", pair("h2o", model="tiny", batch_size=2), records)
    write(tmp_path / "c", "r0", pair("h2o", model="gpt2"), records)
    with pytest.raises(ValueError, match=r"no run below .*/a has the model, .* of one below .*/b: each of these is on"):
        compare(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ValueError, match=r"one below .*/c: they differ in model \(tiny / gpt2\)\.$"):
        compare(tmp_path / "a", tmp_path / "c")


def test_constants_are_those_of_the_measurement() -> None:
    from kvbench.measure import statistics

    assert (module.RESAMPLES, module.CONFIDENCE) == (statistics.RESAMPLES, statistics.CONFIDENCE)


def config(**nodes: object) -> str:
    return json.dumps({"seed": 0, "quality": {"text_windows": 8}, "strategy": {"budget": {"amount": 0.25}}, **nodes})


def check_bytes_and_losses_by_hand(comparer: Callable[[Path, Path], pd.DataFrame], runs: Path) -> None:
    """12 MiB over 8 are 1.5, 2.61 nats less 2.5 are 0.11; of another seed there is no difference to tell."""
    records = timed([[2.0] * 3] * 3, [[4.0] * 3] * 3)
    known = {"a": (12, 2.61, config()), "b": (8, 2.5, config()), "c": (0, 2.5, config(seed=1))}
    for side, (size, loss, config_json) in known.items():
        ours = row("h2o", config_json=config_json, kv_allocated_bytes=size * MIB, nll_nats=loss)
        write(runs / side, "r0", [ours, baseline(config_json=config_json)], records)
    found, other = comparer(runs / "a", runs / "b").iloc[0], comparer(runs / "a", runs / "c").iloc[0]
    assert found["kv_ratio"] == 1.5
    assert found["nll_difference"] == pytest.approx(0.11)
    assert pd.isna(other["nll_difference"])
    assert pd.isna(other["kv_ratio"])


def test_bytes_and_losses_by_hand(tmp_path: Path) -> None:
    check_bytes_and_losses_by_hand(compare, tmp_path)


@pytest.mark.parametrize("mutant", mutants.BESIDE)
def test_oracle_catches_other_bytes_and_losses(mutant: Callable[[Path, Path], pd.DataFrame], tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check_bytes_and_losses_by_hand(mutant, tmp_path)


def test_a_strategy_meets_its_like_where_settings_agree_as_far_as_both_have_them(tmp_path: Path) -> None:
    records = timed([[2.0] * 3] * 3, [[4.0] * 3] * 3)
    half, more = {"budget": {"amount": 0.5}}, {"budget": {"amount": 0.25}, "new": {"setting": 1}}
    for side, runs in (
        ("a", {"r0": ("h2o", config()), "r1": ("snapkv", config())}),
        ("b", {"r2": ("h2o", config(strategy=more)), "r3": ("h2o", config(strategy=half))}),
        ("c", {"r4": ("quest", config())}),
    ):
        for run_id, (strategy, config_json) in runs.items():
            write(tmp_path / side, run_id, pair(strategy, config_json=config_json), records)
    found = compare(tmp_path / "a", tmp_path / "b", same_strategy=True)
    assert found[["run_id_a", "run_id_b"]].to_numpy().tolist() == [["r0", "r2"]]
    with pytest.raises(ValueError, match=r"no strategy below .*/a is one below .*/c with the same settings"):
        compare(tmp_path / "a", tmp_path / "c", same_strategy=True)
