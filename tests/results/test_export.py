"""What is exported says what was loaded."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pandas as pd
import pytest

from kvbench.results.export import export
from tests.results.factory import baseline, frame, row

RUNS = frame([row("h2o", ratio=0.1 + 0.2, kl_nats=None, rounds=12), baseline(peak_bytes=2**60)])


def test_csv_has_a_heading_and_nothing_where_nothing_was_measured(tmp_path: Path) -> None:
    export(RUNS, tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(RUNS.columns)
    assert float(rows[0]["ratio"]) == 0.1 + 0.2
    assert (rows[0]["kl_nats"], rows[0]["rounds"], rows[1]["rounds"]) == ("", "12", "")
    assert rows[1]["peak_bytes"] == str(2**60)
    assert rows[0]["git_dirty"] == ""


def test_json_has_an_object_per_row_and_null_where_nothing_was_measured(tmp_path: Path) -> None:
    export(RUNS, tmp_path / "runs.json")
    rows = json.loads((tmp_path / "runs.json").read_text())
    assert list(rows[0]) == list(RUNS.columns)
    assert rows[0]["ratio"] == pytest.approx(0.3, rel=1e-14)
    assert (rows[0]["kl_nats"], rows[0]["rounds"], rows[1]["peak_bytes"]) == (None, 12, 2**60)


def test_a_repeated_index_is_no_obstacle(tmp_path: Path) -> None:
    export(pd.concat([RUNS, RUNS]), tmp_path / "runs.json")
    assert len(json.loads((tmp_path / "runs.json").read_text())) == 4


@pytest.mark.parametrize("name", ["runs.xlsx", "runs"])
def test_other_endings_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"exported as \.csv or \.json; got .*{name}"):
        export(RUNS, tmp_path / name)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot write .*nowhere/runs.csv: No such file or directory"):
        export(RUNS, tmp_path / "nowhere" / "runs.csv")
