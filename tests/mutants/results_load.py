"""Loaders that take what they get."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from kvbench.results.load import STEP_CONTEXT, load
from kvbench.results.schema import SCHEMA_VERSION, STEPS


def joined_by_name(path: Path, *, steps: bool) -> pd.DataFrame:
    """Look a step's run up by its name, of which there may be two."""
    assert steps
    named = load(path)[["run_id", "arm", *STEP_CONTEXT]]
    timed = load(path, steps=True)[STEPS.names]
    again = timed["arm"].replace("baseline_again", "baseline")
    joined = timed.assign(key=again).merge(named.rename(columns={"arm": "key"}), on=["run_id", "key"])
    return joined[[*STEPS.names, *STEP_CONTEXT]]


def takes_any_version(path: Path) -> pd.DataFrame:
    """Read every file as if it were ours."""
    return pd.concat([pq.read_table(file).to_pandas() for file in path.rglob("run.parquet")])


def drops_other_versions(path: Path) -> pd.DataFrame:
    """Leave out what it does not know and say nothing."""
    frame = takes_any_version(path)
    return frame[frame["schema_version"] == SCHEMA_VERSION]


CARELESS = [takes_any_version, drops_other_versions]
