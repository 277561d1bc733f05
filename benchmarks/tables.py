"""Tables that a benchmark may fill in parts."""

from __future__ import annotations

from pathlib import Path

import pandas as pd


def keep(fresh: pd.DataFrame, file: Path, by: list[str]) -> None:
    """Write a table in place of the rows that have the same values in some columns, beside all others."""
    if file.is_file():
        old = pd.read_parquet(file)
        is_old = pd.MultiIndex.from_frame(old[by]).isin(pd.MultiIndex.from_frame(fresh[by]))
        columns = old.columns.union(fresh.columns, sort=False)
        said = [part.dropna(axis="columns", how="all") for part in (old[~is_old], fresh) if len(part) > 0]
        fresh = pd.concat(said, ignore_index=True).reindex(columns=columns)
    fresh.to_parquet(file)
