"""A tree of finished runs as one data frame."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from kvbench.results.folder import BUNDLE, REQUESTS_FILE, RUN_FILE, SAMPLES_FILE, STEPS_FILE, bundles, compacted
from kvbench.results.records import to_frame
from kvbench.results.schema import REQUESTS, RUN, SAMPLES, SCHEMA_VERSION, STEPS

_AT_ONCE = 200  # files: a data set keeps what describes each, a megabyte
_SOURCE = pa.dictionary(pa.int32(), pa.string())  # one text for the many rows of a file

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
    runs = rows_below(Path(path))
    if not runs.num_rows:
        raise ValueError(f"no finished run below {path}: run something first, or give the folder that runs= named.")
    parts = {STEPS_FILE: (steps, STEPS), REQUESTS_FILE: (requests, REQUESTS), SAMPLES_FILE: (samples, SAMPLES)}
    for name, (is_asked, schema) in parts.items():
        if is_asked:
            return to_frame(_with_context(runs, *part_of(runs, name, schema)))
    return to_frame(runs.drop_columns(["folder", "source"]))


def rows_below(root: Path) -> pa.Table:
    """Return the rows of all runs below a folder, oldest first.

    Args:
        root: of a run, which may have been compacted, a sweep or a whole tree of runs.

    Returns:
        columns of the schema, `folder` of the run, and `source`, where its files lie: the same, or a bundle's.

    Raises:
        ValueError: if there is no such folder, or something written under another version of the schema.
    """
    if root.is_dir():
        return runs_in(_folders(root))
    if root.name not in compacted(root.parent):
        raise ValueError(f"no folder {root}: give the folder that runs= named, or one inside it.")
    runs = runs_in(bundles(root.parent))
    return runs.filter(pc.equal(runs["folder"], str(root)))


def runs_in(sources: Sequence[Path]) -> pa.Table:
    """Return the rows of runs, oldest first; a run that lies in two places is there once.

    Args:
        sources: folders of a run each, or of many.
    """
    runs = _runs([source / RUN_FILE for source in sources])
    runs = runs.set_column(len(RUN.names), "source", runs["source"].cast(pa.string()))
    pairs = list(zip(runs["source"].to_pylist(), runs["run_id"].to_pylist(), strict=True))
    folders = [_folder(source, run_id) for source, run_id in pairs]
    first = {folder: source for folder, (source, _) in reversed(list(zip(folders, pairs, strict=True)))}
    runs = runs.append_column("folder", pa.array(folders, pa.string()))
    is_first = [first[folder] == source for folder, (source, _) in zip(folders, pairs, strict=True)]
    runs = runs.filter(pa.array(is_first, pa.bool_()))
    return runs.take(pc.sort_indices(runs, [(name, "ascending") for name in ("created_at", "folder", "arm")]))


def part_of(runs: pa.Table, name: str, schema: pa.Schema) -> tuple[pa.Table, pa.Array]:
    """Return what lies beside the rows of runs, and for each record the place of its run's row.

    Args:
        runs: as `runs_in` returns them.
        name: of the file.
        schema: of the file.
    """
    files = [Path(source) / name for source in pc.unique(runs["source"]).to_pylist()]
    part = _read([file for file in files if file.is_file()], schema)
    arm = pc.replace_substring(part["arm"], "baseline_again", "baseline")
    known = [pc.unique(runs[column]) for column in ("source", "run_id", "arm")]
    place = pc.index_in(
        _key([part["source"], part["run_id"], arm], known),
        _key([runs[column] for column in ("source", "run_id", "arm")], known).combine_chunks(),
    )
    is_known = pc.is_valid(place)  # others belong to a run that lies in two places
    return part.drop_columns("source").filter(is_known), place.filter(is_known)


def _folder(source: str, run_id: str) -> str:
    """Return the folder of a run: that of its files, or the one it had before it was compacted."""
    place, _, name = source.rpartition("/")
    return f"{place}/{run_id}" if name.startswith(BUNDLE) else source


def _key(columns: Sequence[pa.ChunkedArray], known: Sequence[pa.Array]) -> pa.ChunkedArray:
    """Return a number for each combination of values: numbers are joined faster than texts, and are smaller."""
    key = None
    for column, values in zip(columns, known, strict=True):
        number = pa.chunked_array([_places(chunk, values) for chunk in column.chunks], pa.int64())
        key = number if key is None else pc.add(pc.multiply(key, len(values)), number)
    return key


def _places(chunk: pa.Array, values: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(chunk.type):
        return _places(chunk.dictionary, values).take(chunk.indices)
    return pc.index_in(chunk, values).cast(pa.int64())


def _with_context(runs: pa.Table, part: pa.Table, place: pa.Array) -> pa.Table:
    for column in STEP_CONTEXT:
        if column not in part.column_names:
            part = part.append_column(RUN.field(column), runs[column].take(place))
    return part


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
        folder, version = others["source"][0].as_py(), others["schema_version"][0].as_py()
        raise ValueError(
            f"{folder} was written under version {version} of the schema and this kvbench reads version "
            f"{SCHEMA_VERSION}: their columns do not mean the same. Move it out of the tree, or read it with the "
            f"kvbench that wrote it."
        )


def _read(files: Sequence[Path], schema: pa.Schema) -> pa.Table:
    """Return tables one below the other, with column `source` for the folder of each row's file."""
    if not files:
        return schema.append(pa.field("source", _SOURCE)).empty_table()
    return pa.concat_tables([_read_some(files[at : at + _AT_ONCE], schema) for at in range(0, len(files), _AT_ONCE)])


def _read_some(files: Sequence[Path], schema: pa.Schema) -> pa.Table:
    dataset = ds.dataset([str(file) for file in files], schema=schema, format="parquet")
    try:
        table = dataset.to_table(columns=[*schema.names, "__filename"]).combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OSError) as error:
        raise ValueError(f"cannot read results, move the damaged file away: {' '.join(str(error).split())}") from error
    sources = [_dirnames(chunk) for chunk in table["__filename"].dictionary_encode().chunks]
    return table.set_column(len(schema.names), "source", pa.chunked_array(sources, _SOURCE))


def _dirnames(names: pa.DictionaryArray) -> pa.DictionaryArray:
    places = [name.rpartition("/")[0] for name in names.dictionary.to_pylist()]
    return pa.DictionaryArray.from_arrays(names.indices, pa.array(places, pa.string()))
