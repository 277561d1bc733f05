"""Writers that do not look at what they write."""

from __future__ import annotations

import pyarrow as pa

from kvbench.results.records import Record, run_table
from kvbench.results.schema import RUN, RUN_WORDS


def without_words(record: Record) -> pa.Table:
    """Take any word for a word of the schema."""
    known = {name: value for name, value in record.items() if value in RUN_WORDS.get(name, (value,))}
    return run_table([known], run_id="r0", sweep="adhoc")


def without_strangers(record: Record) -> pa.Table:
    """Drop columns that nobody described, and their numbers with them."""
    return run_table([{name: record[name] for name in record if name in RUN.names}], run_id="r0", sweep="adhoc")


def with_fillers(record: Record) -> pa.Table:
    """Write something where something must be."""
    return run_table(
        [{name: "" if value is None else value for name, value in record.items()}], run_id="r0", sweep="adhoc"
    )


def cut_short(record: Record) -> pa.Table:
    """Cut numbers to whole ones where the column holds whole ones, as pyarrow does when it is given the type."""
    whole = {
        name: int(value) if isinstance(value, float) and name in WHOLE else value for name, value in record.items()
    }
    return run_table([whole], run_id="r0", sweep="adhoc")


WHOLE = {field.name for field in RUN if field.type == pa.int64()}
WRITERS = [without_words, without_strangers, with_fillers, cut_short]
