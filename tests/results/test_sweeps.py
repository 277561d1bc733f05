"""How far a sweep is can be said at any moment, from its runs alone."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from kvbench.results.folder import open_draft
from kvbench.results.load import load
from kvbench.results.sweeps import Planned, Standing, Sweep, standings, sweeps_below, time_left
from tests.mutants import results_sweeps as mutants
from tests.results.factory import baseline, failed, row, write

START = "2026-01-02T10:00:00+00:00"
NAMES = ("done", "unsupported", "again", "elsewhere", "live", "killed", "never")
SWEEP = Sweep(
    started_at=START,
    source_hash="5eed",
    rows=[
        *(Planned(label=name, strategy="h2o", config_hash=name) for name in NAMES),
        Planned(label="strategy=h2oo", refused="there is no such choice"),
    ],
)
Judge = Callable[[Path, Sweep], list[Standing]]


def tree(runs: Path) -> Path:
    """Write a sweep in which every kind of row is, and runs beside it that are none of its."""
    folder = runs / "adhoc"
    write(runs, "r0", [row("h2o", config_hash="done", created_at="2026-01-02T10:00:30+00:00"), baseline()])
    write(runs, "r1", [failed("h2o", "unsupported", "too small", config_hash="unsupported", created_at=START)])
    for run_id, second, status in (("r2", 1, "timeout"), ("r2-2", 2, "error")):
        made = {"config_hash": "again", "created_at": f"2026-01-02T09:00:0{second}+00:00"}
        write(runs, run_id, [failed("h2o", status, run_id, **made)])
    write(runs, "r3", [row("h2o", config_hash="elsewhere", source_hash="0ther")])
    write(runs, "r4", [row("snapkv", config_hash="never")])
    SWEEP.leave(folder)
    for name, pid in (("live", os.getpid()), ("killed", 2**22 + 1)):  # above the largest process number of Linux
        draft = folder / f".draft-{socket.gethostname()}-{pid}-0a1b"
        draft.mkdir()
        identity = {"strategy": "h2o", "config_hash": name, "created_at": START}
        (draft / "identity.json").write_text(json.dumps(identity))
    (folder / f".draft-{socket.gethostname()}-{os.getpid()}-beef").mkdir()  # has just begun
    return folder


def check_each_row_is_what_its_runs_say(judge: Judge, runs: Path) -> None:
    """A row is what the newest run of the same source is; a draft counts for as long as its process lives."""
    folder = tree(runs)
    found = [(row.label, row.status, row.run_id, row.reason) for row in judge(folder, SWEEP)]
    assert found == [
        ("done", "ok", "r0", ""),
        ("unsupported", "unsupported", "r1", "too small"),
        ("again", "error", "r2-2", "r2-2"),
        ("elsewhere", "missing", "", ""),
        ("live", "running", "", f"on {socket.gethostname()} since {START}"),
        ("killed", "missing", "", ""),
        ("never", "missing", "", ""),
        ("strategy=h2oo", "refused", "", "there is no such choice"),
    ]


def test_each_row_is_what_its_runs_say(tmp_path: Path) -> None:
    check_each_row_is_what_its_runs_say(standings, tmp_path)


@pytest.mark.parametrize("mutant", mutants.CREDULOUS)
def test_oracle_catches_a_judge_that_believes(mutant: Judge, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check_each_row_is_what_its_runs_say(mutant, tmp_path)


def test_what_was_asked_for_is_found_again_and_is_no_run(tmp_path: Path) -> None:
    folder = tree(tmp_path)
    before = load(tmp_path)
    Sweep(started_at=START, source_hash="5eed", rows=SWEEP.rows[:3]).leave(folder)
    SWEEP.leave(folder)  # the same once more
    assert sorted(len(sweep.rows) for _, sweep in sweeps_below(tmp_path)) == [3, 8]
    assert {place for place, _ in sweeps_below(tmp_path)} == {folder}
    assert SWEEP in [sweep for _, sweep in sweeps_below(folder)]
    pd.testing.assert_frame_equal(load(tmp_path), before)


def test_time_left_is_what_the_rows_of_this_start_took(tmp_path: Path) -> None:
    rows = standings(tree(tmp_path), SWEEP)
    now = datetime.fromisoformat(START) + timedelta(minutes=2)
    assert time_left(SWEEP, rows, now) == timedelta(minutes=4)  # two of this start in two minutes, four to come
    assert time_left(SWEEP, [row for row in rows if row.status != "running"], now) is None
    assert time_left(SWEEP, [row for row in rows if not row.is_finished], now) is None


def test_a_sweep_nobody_has_measured_is_missing(tmp_path: Path) -> None:
    assert {row.status for row in standings(tmp_path, SWEEP)} == {"missing", "refused"}


def test_a_draft_that_is_dropped_meanwhile_is_not_running(tmp_path: Path) -> None:
    with open_draft(tmp_path, sweep="adhoc", run_id="r0", force=False) as draft:
        draft.write_text("identity.json", '{"strategy": "h')
        assert standings(tmp_path / "adhoc", SWEEP)[4].status == "missing"
