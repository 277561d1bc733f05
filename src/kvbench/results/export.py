"""Results for programs that do not read parquet."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

SUFFIXES = (".csv", ".json")


def export(frame: pd.DataFrame, path: Path) -> None:
    """Write a data frame as its suffix says: csv with a heading, or json with one object per row.

    Args:
        frame: rows as `kvbench.load` returns them.
        path: of the file; ends in .csv or .json.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"results are exported as {' or '.join(SUFFIXES)}; got {path}. Change the file's ending.")
    if path.suffix == ".csv":
        text = frame.to_csv(index=False)
    else:
        text = frame.to_json(orient="records", indent=1, double_precision=15) + "\n"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}. Give another file.") from error
