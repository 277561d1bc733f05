"""A tree of runs is read as a whole, and what does not belong is passed over or refused with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvbench.results.load import STEP_CONTEXT, load
from kvbench.results.schema import RUN, SCHEMA_VERSION, STEPS
from tests.mutants import results_load as mutants
from tests.results.factory import baseline, failed, row, steps, write

Loader = Callable[..., pd.DataFrame]


def tree(runs: Path) -> None:
    """Write two sweeps that share a run, and a run without steps."""
    timed = [*steps([[3.0, 1.0], [3.0, 1.0]]), *steps([[2.0, 2.0]], arm="baseline")]
    again = steps([[2.0, 2.0]], arm="baseline_again")
    write(runs, "r0", [row("h2o", created_at="2026-01-03"), baseline(created_at="2026-01-03")], [*timed, *again])
    write(runs, "r0", [row("h2o", created_at="2026-01-01")], timed[:2], sweep="survey")
    write(runs, "r1", [failed("tova", "unsupported", "too small", created_at="2026-01-02")], sweep="survey")


def test_a_tree_is_read_oldest_first_with_the_schemas_types(tmp_path: Path) -> None:
    tree(tmp_path)
    frame = load(str(tmp_path))
    assert list(frame.columns) == RUN.names
    assert frame[["sweep", "run_id", "arm"]].to_numpy().tolist() == [
        ["survey", "r0", "strategy"],
        ["survey", "r1", "strategy"],
        ["adhoc", "r0", "baseline"],
        ["adhoc", "r0", "strategy"],
    ]
    assert frame["prompt_tokens"].dtype == "Int64"


def test_a_sweep_and_a_run_are_trees_too(tmp_path: Path) -> None:
    tree(tmp_path)
    assert len(load(tmp_path / "survey")) == 2
    assert len(load(tmp_path / "adhoc" / "r0")) == 2


def check_steps_know_their_run(loader: Loader, runs: Path) -> None:
    """Every step comes once, in its order, with its own run's strategy, also where two sweeps share a run's name."""
    tree(runs)
    frame = loader(runs, steps=True)
    assert list(frame.columns) == [*STEPS.names, *STEP_CONTEXT]
    assert len(frame) == 10
    named = frame[["sweep", "arm", "strategy"]].drop_duplicates().to_numpy().tolist()
    assert sorted(named) == [
        ["adhoc", "baseline", "baseline"],
        ["adhoc", "baseline_again", "baseline"],
        ["adhoc", "strategy", "h2o"],
        ["survey", "strategy", "h2o"],
    ]
    ours = frame[(frame["sweep"] == "adhoc") & (frame["arm"] == "strategy")]
    assert ours["wall_ns"].tolist() == [3_000_000, 1_000_000, 3_000_000, 1_000_000]


def test_steps_know_their_run(tmp_path: Path) -> None:
    check_steps_know_their_run(load, tmp_path)


def test_oracle_catches_steps_joined_by_name_alone(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check_steps_know_their_run(mutants.joined_by_name, tmp_path)


def other_version(folder: Path, version: int, peak: object = 1) -> None:
    """Write a run as another kvbench would."""
    folder.mkdir(parents=True)
    columns = {"schema_version": pa.array([version], pa.int64()), "peak_bytes": pa.array([peak])}
    pq.write_table(pa.table(columns), folder / "run.parquet")


def check_other_versions_are_refused(loader: Loader, runs: Path, peak: object = 1) -> None:
    """A row of another version stops the load, with the reason and the place."""
    tree(runs)
    other_version(runs / "adhoc" / "old", SCHEMA_VERSION + 1, peak)
    reason = ""
    try:
        loader(runs)
    except ValueError as error:
        reason = str(error)
    assert f"adhoc/old was written under version {SCHEMA_VERSION + 1} of the schema" in reason
    assert f"reads version {SCHEMA_VERSION}" in reason


@pytest.mark.parametrize("peak", [1, "1 MiB"])
def test_other_versions_are_refused_also_where_their_types_are_others(peak: object, tmp_path: Path) -> None:
    check_other_versions_are_refused(load, tmp_path, peak)


@pytest.mark.parametrize("mutant", mutants.CARELESS)
def test_oracle_catches_a_loader_that_takes_any_version(mutant: Loader, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check_other_versions_are_refused(mutant, tmp_path)


def test_strangers_are_passed_over(tmp_path: Path) -> None:
    tree(tmp_path)
    before = load(tmp_path)
    (tmp_path / "adhoc" / "multirun.yaml").write_text("hydra: {}\n")
    (tmp_path / "adhoc" / "empty").mkdir()
    draft = tmp_path / "adhoc" / ".draft-here-1-0a1b"
    other_version(draft, SCHEMA_VERSION + 1)
    other = tmp_path / "mine"
    other.mkdir()
    pq.write_table(pa.table({"price": [3.5]}), other / "run.parquet")
    inside = tmp_path / "adhoc" / "r0" / "wandb"
    other_version(inside, SCHEMA_VERSION + 1)
    pd.testing.assert_frame_equal(load(tmp_path), before)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    tree(tmp_path)
    (tmp_path / "survey" / "r1" / "run.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"cannot read results, move the damaged file away: .*survey/r1/run.parquet"):
        load(tmp_path)


@pytest.mark.parametrize(("place", "message"), [("", "no finished run below"), ("nowhere", "no folder .*nowhere")])
def test_an_empty_tree_says_what_to_do(place: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{message}.*the folder that runs= named"):
        load(tmp_path / place)


def test_runs_without_steps_have_no_rows(tmp_path: Path) -> None:
    write(tmp_path, "r1", [failed("tova", "timeout", "600 s")])
    (tmp_path / "adhoc" / "r1" / "steps.parquet").unlink()
    assert len(load(tmp_path, steps=True)) == 0
    assert json.loads(load(tmp_path).loc[0, "config_json"])["seed"] == 0
