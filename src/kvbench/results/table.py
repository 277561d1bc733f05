"""The one table that people read: a strategy in each row, the baseline above them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from kvbench.results.cells import FIELDS, Row, Units, label_of, plain, ratio_of, units_of
from kvbench.results.control import no_better_than_random
from kvbench.results.elsewhere import elsewhere

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
_NOT_THE_BASELINES = ("strategy", "sink", "runs", "force", "compare", "plugins")  # keys of the configuration
_WIDE = 10_000
_TITLE_WIDTH = 13  # of the notes below a table

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
class _Group:
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


def print_table(frame: pd.DataFrame, console: Console, *, path: Path | None = None) -> None:
    """Show runs, a table for each model and workload, as wide as the console allows.

    Args:
        frame: rows as `kvbench.load` returns them.
        console: to print on.
        path: where the files are, or None to leave that out.
    """
    for group in _groups(frame):
        console.print(Group(*_render(group, console)))
    if path is not None:
        console.print(Text.assemble((f"{'files':{_TITLE_WIDTH}} ", "dim"), str(path)), soft_wrap=True)


def _groups(frame: pd.DataFrame) -> Iterator[_Group]:
    for rows in _of_a_kind(plain(frame)):
        baselines = [row for row in rows if row["arm"] == "baseline"]
        candidates = [row for row in [*baselines, *rows] if row["strategy"] == "baseline" and row["status"] == "ok"]
        shown = candidates[0] if candidates else None
        others = [row for row in rows if row is not shown and row["arm"] == "strategy"]
        yield _Group(baseline=shown, others=others, baselines=baselines)


def _of_a_kind(rows: Sequence[Row]) -> Iterator[list[Row]]:
    kinds: dict[tuple[object, ...], list[int]] = {}
    for index in sorted(range(len(rows)), key=lambda index: rows[index]["status"] != "ok"):
        kind = tuple(rows[index][name] for name in _KIND)
        if rows[index]["status"] != "ok":  # where a run ended early, it fits wherever nothing speaks against it
            fits = (k for k in kinds if all(mine in (None, theirs) for mine, theirs in zip(kind, k, strict=True)))
            kind = next(fits, kind)
        kinds.setdefault(kind, []).append(index)
    for indices in sorted(kinds.values(), key=min):
        yield [rows[index] for index in sorted(indices)]


def _render(group: _Group, console: Console) -> Iterator[RenderableType]:
    yield Text()
    yield _heading(group.known)
    if any(row["status"] == "ok" for row in group.rows):
        yield from _tables(group, console)
    yield Text()
    yield from _legend(group.rows)
    yield from _notes(group)
    yield _weights_note(group.known)


def _tables(group: _Group, console: Console) -> Iterator[RenderableType]:
    units = units_of(group.rows)
    for layout in _LAYOUTS:
        tables = [_table(group, columns, units) for columns in layout]
        if all(_width(table, console) <= console.width for table in tables):
            break
    for table in tables:
        yield Text()
        yield table


def _width(table: Table, console: Console) -> int:
    return Measurement.get(console, console.options.update(width=_WIDE), table).maximum


def _table(group: _Group, columns: Sequence[tuple[str, ...]], units: Units) -> Table:
    heads = [_head(column, units) for column in columns]
    table = Table(*heads, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for row, name in zip(group.rows, _names(group), strict=True):
        cells = [[Text(name) if n == "strategy" else FIELDS[n].cell(row, units) for n in column] for column in columns]
        table.add_row(*(_stack(lines) for lines in cells))
    return table


def _head(column: Sequence[str], units: Units) -> Column:
    fields = [FIELDS[name] for name in column]
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


def _names(group: _Group) -> list[str]:
    names = [label_of(row) for row in group.rows]
    if group.baseline and group.others:
        names[1:] = ["baseline again" if name == "baseline" else name for name in names[1:]]
    run_ids = [row["run_id"] for row in group.rows]
    return [
        f"{name} ({run_id})" if names.count(name) > 1 else name for name, run_id in zip(names, run_ids, strict=True)
    ]


def _heading(row: Row) -> Text:
    count = row["num_threads"] if row["device"] == "cpu" else None
    threads = f", {count} thread{'' if count == 1 else 's'}" if count else ""
    new = "" if row["new_tokens"] is None else f" + {row['new_tokens']:,}"
    what = f"{row['workload']}: {row['prompt_tokens']:,}{new} tokens, batch {row['batch_size']}"
    aware = ", question in the cache" if row["query_aware"] else ""
    evidence = "" if row["evidence"] == "measured" else f" | {row['evidence']}, not measured"
    machine = f"{row['dtype'] or ''} on {row['device_name'] or row['device']}{threads}".strip()
    return Text.assemble((str(row["model"]), "bold"), f" | {what}{aware} | {machine}{evidence}")


def _legend(rows: Sequence[Row]) -> Iterator[RenderableType]:
    if any(ratio_of(row) for row in rows):
        what = "the prefill" if all(row["ratio"] is None for row in rows) else "a decode step"
        yield _note("ratio", f"time of {what} over the baseline's, below 1 is faster, with its 95% interval")
        yield _note("ceiling", "the most that the bytes read allow, as a speed-up")
    if any(row["status"] == "ok" for row in rows):
        yield _note("KV, loss", "all storages of the cache on the device; nats per token above the full cache's loss")


def _notes(group: _Group) -> Iterator[RenderableType]:
    rows = group.rows
    for row, name in zip(rows, _names(group), strict=True):
        if row["status"] != "ok":
            yield _note(str(row["status"]).replace("_", " "), f"{name}: {row['reason']}", style="yellow")
        elif row["verdict"] == "inconclusive" and row["reason"]:
            yield _note("inconclusive", f"{name}: {row['reason']}")
        if name.endswith(f"({row['run_id']})"):
            yield _note("overrides", f"{row['run_id']}: {row['overrides'] or 'none'}")
    for title, text in elsewhere(rows):
        yield _note(title, text)
    if any(row["regime"] == "overhead_bound" for row in rows):
        yield _note("overhead", "all that a step reads fits in the processor's own cache: its speed allows no verdict")
    if any(row["data_dependent"] for row in rows if row["weights"] == "random"):
        yield _note("bytes", "some strategies store what the data asks for: random weights do not ask", style="yellow")
    for row, lost in no_better_than_random(rows):
        yield _note("control", f"{label_of(row)} does not beat random_eviction at the same budget in {', '.join(lost)}")
    yield from _baseline_note(group)


def _note(title: str, text: str, style: str = "dim") -> RenderableType:
    line = Table.grid(padding=(0, 1))
    line.add_column(width=_TITLE_WIDTH, no_wrap=True)
    line.add_column(overflow="fold")
    line.add_row(Text(title, style), Text(text, style))
    return line


def _weights_note(row: Row) -> RenderableType:
    if row["weights"] == "random":
        loud = "RANDOM, the true architecture only: times and bytes count, quality does not exist"
        return _note("weights", loud, style="bold yellow")
    if row["weights"] == "embedded":
        return _note("weights", "embedded: a small model trained by kvbench and shipped with it")
    revision = f" ({row['model_revision']})" if row["model_revision"] else ""
    return _note("weights", f"{row['weights'] or 'unknown'}{revision}")


def _baseline_note(group: _Group) -> Iterator[RenderableType]:
    configs = [_flat(json.loads(str(row["config_json"]))) for row in group.baselines]
    keys = sorted({key for config in configs for key in config})
    differing = [key for key in keys if len({config.get(key) for config in configs}) > 1]
    if differing and group.baseline:
        yield _note(
            "baseline",
            f"each run was timed against its own, and they differ in {', '.join(differing)}; "
            f"shown is that of {group.baseline['run_id']}",
            style="yellow",
        )


def _flat(config: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        if prefix or key not in _NOT_THE_BASELINES:
            name = f"{prefix}{key}"
            flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: json.dumps(value)}
    return flat
