"""A tree of finished runs as one data frame."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from kvbench.results.folder import REQUESTS_FILE, RUN_FILE, SAMPLES_FILE, STEPS_FILE
from kvbench.results.records import to_frame
from kvbench.results.schema import REQUESTS, RUN, SAMPLES, SCHEMA_VERSION, STEPS

# what a timed step means depends on these columns of its run
STEP_CONTEXT = (
    "sweep",
    "strategy",
    "budget_unit",
    "budget_amount",
    "model",
    "weights",
    "workload",
    "batch_size",
    "prompt_tokens",
    "query_aware",
    "device_name",
    "comparison",
    "statistic",
)


def load(path: str | Path, *, steps: bool = False, requests: bool = False, samples: bool = False) -> pd.DataFrame:
    """Return the runs below a folder, oldest first: a row per arm, timed step, request served, or answer.

    Drafts, folders without results and other people's files are passed over.

    Args:
        path: of a run, a sweep or a whole tree of runs.
        steps: whether to return timed steps, with what describes their run in the columns of STEP_CONTEXT.
        requests: the same of requests, as often as they were served.
        samples: the same of answers, one per turn.

    Raises:
        ValueError: if there is nothing, or something written under another version of the schema.
    """
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"no folder {root}: give the folder that runs= named, or one inside it.")
    runs = rows_below(root)
    if not runs.num_rows:
        raise ValueError(f"no finished run below {root}: run something first, or give the folder that runs= named.")
    parts = {STEPS_FILE: (steps, STEPS), REQUESTS_FILE: (requests, REQUESTS), SAMPLES_FILE: (samples, SAMPLES)}
    for name, (is_asked, schema) in parts.items():
        if is_asked:
            return to_frame(_parts(runs, name, schema).drop_columns("folder"))
    return to_frame(runs.drop_columns("folder"))


def rows_below(root: Path) -> pa.Table:
    """Return the rows of all runs below a folder, oldest first, and in column `folder` where each lies."""
    runs = _runs([folder / RUN_FILE for folder in _folders(root)])
    return runs.take(pc.sort_indices(runs, [(name, "ascending") for name in ("created_at", "folder", "arm")]))


def _folders(root: Path) -> list[Path]:
    found = []
    for folder, inside, files in os.walk(root):
        if RUN_FILE in files:
            found.append(Path(folder))
            inside.clear()
        inside[:] = [name for name in inside if not name.startswith(".")]
    return found


def _runs(files: Sequence[Path]) -> pa.Table:
    try:
        runs = _read(files, RUN)
    except ValueError:  # under another version a column may have another type
        _refuse_other_versions(_read(files, pa.schema([RUN.field("schema_version")])))
        raise
    _refuse_other_versions(runs)
    return runs.filter(pc.is_valid(runs["schema_version"]))


def _refuse_other_versions(runs: pa.Table) -> None:
    others = runs.filter(pc.not_equal(runs["schema_version"], SCHEMA_VERSION))
    if others.num_rows:
        folder, version = others["folder"][0].as_py(), others["schema_version"][0].as_py()
        raise ValueError(
            f"{folder} was written under version {version} of the schema and this kvbench reads version "
            f"{SCHEMA_VERSION}: their columns do not mean the same. Move it out of the tree, or read it with the "
            f"kvbench that wrote it."
        )


def _parts(runs: pa.Table, name: str, schema: pa.Schema) -> pa.Table:
    files = [Path(folder) / name for folder in pc.unique(runs["folder"]).to_pylist()]
    steps = _read([file for file in files if file.is_file()], schema)
    arm = pc.replace_substring(steps["arm"], "baseline_again", "baseline")
    place = pc.index_in(
        pc.binary_join_element_wise(steps["folder"], arm, "/"),
        pc.binary_join_element_wise(runs["folder"], runs["arm"], "/").combine_chunks(),
    )
    for column in STEP_CONTEXT:
        if column not in steps.column_names:
            steps = steps.append_column(RUN.field(column), runs[column].take(place))
    return steps


def _read(files: Sequence[Path], schema: pa.Schema) -> pa.Table:
    if not files:
        return schema.append(pa.field("folder", pa.string())).empty_table()
    dataset = ds.dataset([str(file) for file in files], schema=schema, format="parquet")
    try:
        table = dataset.to_table(columns=[*schema.names, "__filename"])
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OSError) as error:
        raise ValueError(f"cannot read results, move the damaged file away: {' '.join(str(error).split())}") from error
    folder = pc.replace_substring_regex(table["__filename"], pattern=r"/[^/]*$", replacement="")
    return table.set_column(len(schema.names), "folder", folder)
