"""Plain rows to checked tables, and tables to data frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd
import pyarrow as pa

from kvbench.results.schema import REQUESTS, RUN, RUN_WORDS, SAMPLES, SCHEMA_VERSION, STEP_WORDS, STEPS

Record = Mapping[str, object]

_FRAME_TYPES = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype(), pa.string(): pd.StringDtype("pyarrow")}


def run_table(rows: Iterable[Record], *, run_id: str, sweep: str) -> pa.Table:
    """Return a run's rows as a table of the schema.

    Args:
        rows: one per arm; measures may be missing.
        run_id: name of the run's folder.
        sweep: name of the folder it lies in.
    """
    named = [{**row, "schema_version": SCHEMA_VERSION, "run_id": run_id, "sweep": sweep} for row in rows]
    for row in named:
        if row.get("status") != "ok" and not row.get("reason"):
            raise ValueError(f"a row with status {row.get('status')!r} must give a reason in column 'reason'")
    return _checked(named, RUN, RUN_WORDS)


def step_table(records: Iterable[Record], *, run_id: str) -> pa.Table:
    """Return timed steps as a table of the schema.

    Args:
        records: one per timed step.
        run_id: name of the run's folder.
    """
    return _checked([{**record, "run_id": run_id} for record in records], STEPS, STEP_WORDS)


def request_table(records: Iterable[Record], *, run_id: str) -> pa.Table:
    """Return requests that were served as a table of the schema.

    Args:
        records: one per request and time it was served.
        run_id: name of the run's folder.
    """
    return _checked([{**record, "run_id": run_id} for record in records], REQUESTS, STEP_WORDS)


def sample_table(records: Iterable[Record], *, run_id: str) -> pa.Table:
    """Return what was asked and answered as a table of the schema.

    Args:
        records: one per turn.
        run_id: name of the run's folder.
    """
    return _checked([{**record, "run_id": run_id} for record in records], SAMPLES, STEP_WORDS)


def to_frame(table: pa.Table) -> pd.DataFrame:
    """Return a data frame that keeps integers integers where some are missing."""
    return table.to_pandas(types_mapper=_FRAME_TYPES.get)


def _checked(rows: Sequence[Record], schema: pa.Schema, words: Mapping[str, tuple[str, ...]]) -> pa.Table:
    strangers = sorted({name for row in rows for name in row} - set(schema.names))
    if strangers:
        raise ValueError(f"no such column: {', '.join(strangers)}. Columns are described in kvbench.results.schema.")
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if not field.nullable and any(value is None for value in values):
            raise ValueError(f"column {field.name!r} must not be empty: {field.metadata[b'doc'].decode()}.")
        for value in set(values) - {None} if field.name in words else ():
            if value not in words[field.name]:
                raise ValueError(f"column {field.name!r} must be one of {', '.join(words[field.name])}; got {value!r}.")
    return pa.table({field.name: _column(rows, field) for field in schema}, schema=schema)


def _column(rows: Sequence[Record], field: pa.Field) -> pa.Array:
    try:
        return pa.array([row.get(field.name) for row in rows]).cast(field.type)  # given a type, it would cut 1.5 to 1
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise ValueError(f"column {field.name!r} must be {field.type}: {error}.") from error
