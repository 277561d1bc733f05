"""Columns mean one thing, and rows that say something else are not written."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import get_args

import pyarrow as pa
import pytest

from kvbench.results import schema
from kvbench.results.records import Record, run_table, step_table, to_frame
from tests.mutants import results_records as mutants
from tests.results.factory import baseline, failed, row, steps

Writer = Callable[[Record], pa.Table]


def as_run(record: Record) -> pa.Table:
    return run_table([record], run_id="r0", sweep="adhoc")


def as_step(record: Record) -> pa.Table:
    return step_table([record], run_id="r0")


@pytest.mark.parametrize("columns", [schema.RUN, schema.STEPS])
def test_every_column_is_described(columns: pa.Schema) -> None:
    assert all(field.metadata[b"doc"] for field in columns)
    assert len(set(columns.names)) == len(columns.names)
    assert columns.metadata == {b"kvbench_schema_version": str(schema.SCHEMA_VERSION).encode()}


@pytest.mark.parametrize("field", [*schema.RUN, *schema.STEPS], ids=lambda field: field.name)
def test_a_columns_name_type_and_unit_say_the_same(field: pa.Field) -> None:
    unit = field.metadata[b"unit"].decode()
    for ending, kind, said in [
        ("_ms", pa.float64(), "ms"),
        ("_ns", pa.int64(), "ns"),
        ("_bytes", pa.int64(), "bytes"),
        ("_tokens", pa.int64(), "tokens"),
        ("_ratio", pa.float64(), "ratio"),
    ]:
        if field.name.endswith(ending):
            assert (field.type, unit) == (kind, said)


def test_words_are_those_of_the_parts_that_say_them() -> None:
    from kvbench import types
    from kvbench.measure import roofline, statistics

    for name, home in [
        ("Saving", types),
        ("Fidelity", types),
        ("Phase", types),
        ("Verdict", statistics),
        ("Statistic", statistics),
        ("Regime", roofline),
    ]:
        assert get_args(getattr(schema, name)) == get_args(getattr(home, name))


def check_strange_rows_are_refused(run: Writer, step: Writer) -> None:
    """Whatever a row must not say is refused, with the column's name."""
    timed = steps([[1.0]])[0]
    for write, record, message in [
        (run, row("h2o", verdict="quicker"), "'verdict' must be one of faster, slower.*got 'quicker'"),
        (run, row("h2o", latency=3.0), "no such column: latency"),
        (run, row("h2o", model=None), "'model' must not be empty: name of the model"),
        (run, row("h2o", peak_bytes=1.5), "'peak_bytes' must be int64"),
        (run, row("h2o", ttft_ms="long"), "'ttft_ms' must be double"),
        (run, failed("h2o", "timeout", ""), "status 'timeout' must give a reason"),
        (step, {**timed, "phase": "warmup"}, "'phase' must be one of prefill, decode, serve; got 'warmup'"),
        (step, {**timed, "wall_ns": None}, "'wall_ns' must not be empty"),
    ]:
        refusal = ""
        try:
            write(record)
        except ValueError as error:
            refusal = str(error)
        assert re.search(message, refusal), message


def test_rows_that_the_schema_does_not_know_are_refused() -> None:
    check_strange_rows_are_refused(as_run, as_step)


@pytest.mark.parametrize("mutant", mutants.WRITERS)
def test_oracle_catches_a_writer_that_does_not_look(mutant: Writer) -> None:
    with pytest.raises(AssertionError):
        check_strange_rows_are_refused(mutant, as_step)


def test_missing_measures_stay_missing_and_integers_stay_integers() -> None:
    frame = to_frame(run_table([row("h2o", kl_nats=None, rounds=12), baseline()], run_id="r0", sweep="adhoc"))
    assert frame["rounds"].dtype == "Int64"
    assert frame["rounds"].isna().tolist() == [False, True]
    assert frame["kl_nats"].isna().tolist() == [True, False]
    assert frame["kl_nats"].dtype == "float64"
    assert frame["data_dependent"].dtype == "boolean"
    assert frame.loc[0, "peak_bytes"] == 13 * 2**20


def test_a_runs_name_is_given_by_its_folder() -> None:
    frame = to_frame(run_table([row("h2o", run_id="mine")], run_id="r0", sweep="adhoc"))
    assert frame.loc[0, ["run_id", "sweep", "schema_version"]].tolist() == ["r0", "adhoc", schema.SCHEMA_VERSION]
