"""The one table that people read: a strategy in each row, the baseline above them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from kvbench.results import elsewhere, networks, notes, scores, serving
from kvbench.results.cells import FIELDS, QUALITY, Field, Row, Units, label_of, plain, units_of

_KIND = (
    "schema_version",
    "evidence",
    "model",
    "model_revision",
    "weights",
    "dtype",
    "device",
    "device_name",
    "num_threads",
    "workload",
    "batch_size",
    "prompt_tokens",
    "new_tokens",
    "query_aware",
)
_WIDE = 10_000

# tables of columns of fields: everything on one line, two lines to a row, or two tables of two lines to a row
_Layout = tuple[tuple[tuple[str, ...], ...], ...]
_LAYOUTS: tuple[_Layout, ...] = (
    (tuple((name,) for name in FIELDS),),
    (
        (
            ("strategy", "saving"),
            ("kv", "peak"),
            ("ttft",),
            ("p50", "p99"),
            ("ratio", "interval"),
            ("verdict", "ceiling"),
            ("loss", "top1"),
            ("key_value", "passkey"),
        ),
    ),
    (
        (
            ("strategy", "saving"),
            ("kv", "peak"),
            ("ttft",),
            ("p50", "p99"),
            ("ratio", "interval"),
            ("verdict", "ceiling"),
        ),
        (("strategy",), ("loss",), ("top1",), ("key_value",), ("passkey",)),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Runs that may be read against each other.

    Args:
        baseline: the row shown as such, or None.
        others: the remaining rows.
        baselines: the baseline's row of every run.
    """

    baseline: Row | None
    others: Sequence[Row]
    baselines: Sequence[Row]

    @property
    def rows(self) -> list[Row]:
        """All rows shown, the baseline first."""
        return [*([self.baseline] if self.baseline else []), *self.others]

    @property
    def known(self) -> Row:
        """The row that knows most of the model and the machine: one that did not end early, if there is one."""
        return min(self.rows, key=lambda row: row["status"] != "ok")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A table of some of the rows, of what is theirs alone.

    Args:
        title: what it is about.
        named: rows and what they are called.
        columns: of fields by name, one or two to a column.
        fields: by name.
        units: that fit the rows.
    """

    title: str
    named: notes.Named
    columns: Sequence[tuple[str, ...]]
    fields: Mapping[str, Field]
    units: Units


def print_table(frame: pd.DataFrame, console: Console, *, path: Path | None = None) -> None:
    """Show runs, a table for each model and workload, as wide as the console allows.

    Args:
        frame: rows as `kvbench.load` returns them.
        console: to print on.
        path: where the files are, or None to leave that out.
    """
    for group in groups_of(frame):
        console.print(Group(*_render(group, console)))
    if path is not None:
        console.print(Text.assemble((f"{'files':{notes.TITLE_WIDTH}} ", "dim"), str(path)), soft_wrap=True)


def groups_of(frame: pd.DataFrame) -> Iterator[Shown]:
    """Yield the rows of each model, workload and engine; what was not timed in pairs stands with any engine's."""
    for rows in _of_a_kind(plain(frame)):
        baselines = [row for row in rows if row["arm"] == "baseline"]
        candidates = [row for row in [*baselines, *rows] if row["strategy"] == "baseline" and row["status"] == "ok"]
        shown = candidates[0] if candidates else None
        others = [row for row in rows if row is not shown and row["arm"] == "strategy"]
        yield Shown(baseline=shown, others=others, baselines=baselines)


def _of_a_kind(rows: Sequence[Row]) -> Iterator[list[Row]]:
    kinds: dict[tuple[object, ...], list[int]] = {}

    def is_vague(index: int) -> tuple[bool, bool]:
        return rows[index]["status"] != "ok", rows[index]["comparison"] != "paired"

    for index in sorted(range(len(rows)), key=is_vague):
        row, vague = rows[index], is_vague(index)
        kind = (*(row[name] for name in _KIND), None if vague[1] else row["engine"])
        if any(vague):  # it fits wherever nothing speaks against it
            fits = (k for k in kinds if all(mine in (None, theirs) for mine, theirs in zip(kind, k, strict=True)))
            kind = next(fits, kind)
        kinds.setdefault(kind, []).append(index)
    for indices in sorted(kinds.values(), key=min):
        yield [rows[index] for index in sorted(indices)]


def _render(group: Shown, console: Console) -> Iterator[RenderableType]:
    yield Text()
    yield heading_of(group.known)
    if any(row["status"] == "ok" for row in group.rows):
        yield from _tables(group, console)
    yield Text()
    yield from notes_of(group)


def notes_of(group: Shown) -> Iterator[notes.Note]:
    """Yield what is to be said of a group: what its columns are, and what speaks against its numbers."""
    yield from notes.legend(group.rows)
    yield from notes.of_rows(list(zip(group.rows, names_of(group), strict=True)))
    yield from notes.of_baselines(group.baseline, group.baselines)
    yield notes.of_weights(group.known)


def _tables(group: Shown, console: Console) -> Iterator[RenderableType]:
    units, named = units_of(group.rows), list(zip(group.rows, names_of(group), strict=True))
    for layout in _LAYOUTS:
        tables = [_table(named, columns, FIELDS, units) for columns in _told(layout, group.rows)]
        if all(_width(table, console) <= console.width for table in tables):
            break
    tables += [_table(part.named, part.columns, part.fields, part.units) for part in parts_of(named)]
    for table in tables:
        yield Text()
        yield table


def parts_of(named: notes.Named) -> Iterator[Part]:
    """Yield what is told of some rows beside the columns that all have."""
    rows = [row for row, _ in named]
    away = [(row, name) for row, name in named if elsewhere.away(row)]
    if away:
        moved = [row for row, _ in away]
        columns, units = elsewhere.columns_of(moved), elsewhere.units_of(moved)
        yield Part(title="elsewhere", named=away, columns=columns, fields=elsewhere.FIELDS, units=units)
    if any(row["requests"] for row in rows):
        units = serving.units_of(rows)
        yield Part(title="requests", named=named, columns=serving.COLUMNS, fields=serving.FIELDS, units=units)
    if any(row["asked_samples"] for row in rows):
        yield Part(title="answers", named=named, columns=scores.columns_of(rows), fields=scores.FIELDS, units={})
    if any(row["network"] for row in rows):
        units = networks.units_of(rows)
        yield Part(title="networks", named=named, columns=networks.COLUMNS, fields=networks.FIELDS, units=units)


def _told(layout: _Layout, rows: Sequence[Row]) -> _Layout:
    """Return a layout without what nobody was asked."""
    unasked = {name for name, column in QUALITY.items() if all(row[column] is None for row in rows)}
    tables = (
        tuple(left for column in columns if (left := tuple(name for name in column if name not in unasked)))
        for columns in layout
    )
    return tuple(columns for columns in tables if columns != (("strategy",),))


def _width(table: Table, console: Console) -> int:
    return Measurement.get(console, console.options.update(width=_WIDE), table).maximum


def _table(
    named: Sequence[tuple[Row, str]], columns: Sequence[tuple[str, ...]], fields: Mapping[str, Field], units: Units
) -> Table:
    fields = {"strategy": FIELDS["strategy"], **fields}
    heads = [_head([fields[name] for name in column], units) for column in columns]
    table = Table(*heads, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for row, name in named:
        cells = [[Text(name) if n == "strategy" else fields[n].cell(row, units) for n in column] for column in columns]
        table.add_row(*(_stack(lines) for lines in cells))
    return table


def _head(fields: Sequence[Field], units: Units) -> Column:
    first, last = fields[0], fields[-1]
    unit, last_unit = first.unit_in(units), last.unit_in(units)
    if first is last:
        lines = [first.title, unit]
    else:
        lines = [first.title if unit == last_unit else f"{first.title} {unit}", f"{last.title} {last_unit}".strip()]
    return Column(_stack([Text(line, "bold") for line in lines]), justify=first.justify, no_wrap=True)


def _stack(lines: Sequence[Text]) -> Text:
    first, *rest = lines
    dim = [Text.assemble("\n", (line.plain, "dim")) for line in rest]
    return Text.assemble(first, *dim)


def names_of(group: Shown) -> list[str]:
    """Return what each row is called: its strategy, and what tells it from others of that name."""
    names = [label_of(row) for row in group.rows]
    if group.baseline and group.others:
        names[1:] = ["baseline again" if name == "baseline" else name for name in names[1:]]
    names = [
        _chosen(row) or _network(row) or name if names.count(name) > 1 else name
        for row, name in zip(group.rows, names, strict=True)
    ]
    run_ids = [row["run_id"] for row in group.rows]
    return [
        f"{name} ({run_id})" if names.count(name) > 1 else name for name, run_id in zip(names, run_ids, strict=True)
    ]


def _chosen(row: Row) -> str | None:
    """Return which row of an experiment this is, or None."""
    found = re.search(r"(?:^| )\+row=(\S+)", str(row["overrides"] or ""))
    return found and found[1]


def _network(row: Row) -> str | None:
    """Return the name of the other network that a row ran on, or None."""
    return str(row["network"]).partition(" ")[0] if row["network"] else None


def heading_of(row: Row) -> Text:
    """Return what was measured on what."""
    count = row["num_threads"] if row["device"] == "cpu" else None
    threads = f", {count} thread{'' if count == 1 else 's'}" if count else ""
    new = "" if row["new_tokens"] is None else f" + {row['new_tokens']:,}"
    what = f"{row['workload']}: {row['prompt_tokens']:,}{new} tokens, batch {row['batch_size']}"
    if row["requests"]:
        what = f"{row['requests']} {row['workload']} of at most {row['prompt_tokens']:,}{new} tokens"
    aware = ", question in the cache" if row["query_aware"] else ""
    evidence = "" if row["evidence"] == "measured" else f" | {row['evidence']}, not measured"
    machine = f"{row['dtype'] or ''} on {row['device_name'] or row['device']}{threads}".strip()
    engine = "" if row["comparison"] != "paired" or row["engine"] in (None, "eager") else f" | {row['engine']}"
    return Text.assemble((str(row["model"]), "bold"), f" | {what}{aware} | {machine}{engine}{evidence}")
