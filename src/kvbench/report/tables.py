"""Tables of a page: every cell escaped, numbers as numbers, so that a click sorts them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from kvbench.results.cells import FIELDS, NOTHING, Field, Row, Units, units_of, word
from kvbench.results.labels import number
from kvbench.results.notes import Named, Note
from kvbench.results.table import Part

_LONG = 32  # characters, from which a cell is as wide as a paragraph
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?")


def _real(column: str, form: str = "") -> Field:
    def text(row: Row, units: Units) -> str:
        return NOTHING if row[column] is None else format(row[column], form) if form else number(row[column])

    return Field(title="", unit="", text=text, justify="right")


def _titled(field: Field, title: str, unit: str = "") -> Field:
    return Field(title=title, unit=unit, text=field.text, justify=field.justify)


def _status(row: Row, units: Units) -> str:
    return str(row["status"]).replace("_", " ")


def _loss_interval(row: Row, units: Units) -> str:
    ends = (row["nll_delta_low"], row["nll_delta_high"])
    return NOTHING if None in ends else "[{:+.4f}, {:+.4f}]".format(*ends)


def _why(row: Row, units: Units) -> str:
    return NOTHING if row["status"] == "ok" or not row["reason"] else str(row["reason"])


def _verdicts_why(row: Row, units: Units) -> str:
    return NOTHING if row["status"] != "ok" or not row["reason"] else str(row["reason"])


FIRST: Mapping[str, Field] = {
    "status": Field(title="status", unit="", text=_status, justify="left"),
    "reason": Field(title="reason", unit="", text=_why, justify="left"),
}
LAST: Mapping[str, Field] = {
    "throughput": _titled(_real("tokens_per_s"), "throughput", "tokens/s"),
    "weights": Field(
        title="weights", unit="MiB", text=lambda row, units: _mebibytes(row["weights_bytes"]), justify="right"
    ),
    "loss_interval": Field(title="loss interval", unit="nats", text=_loss_interval, justify="right"),
    "divergence": _titled(_real("kl_nats", ".4f"), "KL", "nats"),
    "fidelity": Field(title="fidelity", unit="", text=word("fidelity"), justify="left"),
    "why": Field(title="why this verdict", unit="", text=_verdicts_why, justify="left"),
}


def _mebibytes(size: float | None) -> str:
    return NOTHING if size is None else number(size / 2**20)


def main_part(named: Named) -> Part:
    """Return the table that all rows are in, without columns in which nobody says anything."""
    rows = [row for row, _ in named]
    units = units_of(rows)
    others = {name: field for name, field in FIELDS.items() if name != "strategy"}
    fields = {**FIRST, **others, **LAST}
    told = [
        name for name, field in fields.items() if any(_text(field, row, units) not in ("", NOTHING) for row in rows)
    ]
    return Part(title="all runs", named=named, columns=[(name,) for name in told], fields=fields, units=units)


def html_of(part: Part) -> Iterator[str]:
    """Yield a table, a piece at a time."""
    names = [name for column in part.columns for name in column if name != "strategy"]
    fields = [part.fields[name] for name in names]
    heads = [head("strategy"), *(head(f.title, f.unit_in(part.units), is_number=f.justify == "right") for f in fields)]
    rows = (
        [
            f'<th scope="row">{escape(name)}</th>',
            *(cell(_text(f, row, part.units), f.justify == "right") for f in fields),
        ]
        for row, name in part.named
    )
    yield from table(part.title, heads, rows)


def table(title: str, heads: Sequence[str], rows: Iterator[list[str]]) -> Iterator[str]:
    """Yield a table that sorts.

    Args:
        title: above it.
        heads: of the columns, as `head` makes them.
        rows: of cells, as `cell` makes them.
    """
    yield f'<div class="wide" role="region" aria-label="{escape(title)}" tabindex="0">'
    yield f"<table><caption>{escape(title)}</caption><thead><tr>{''.join(heads)}</tr></thead><tbody>"
    yield from (f"<tr>{''.join(cells)}</tr>" for cells in rows)
    yield "</tbody></table></div>"


def head(title: str, unit: str = "", *, is_number: bool = False) -> str:
    """Return the head of a column, a button that sorts by it."""
    kind = ' class="number"' if is_number else ""
    behind = f' <span class="unit">{escape(unit)}</span>' if unit else ""
    return f'<th scope="col" aria-sort="none"{kind}><button type="button">{escape(title)}{behind}</button></th>'


def cell(text: str, is_number: bool) -> str:
    """Return a cell; what it sorts by stands in it, unless there is nothing."""
    if text in ("", NOTHING):
        return '<td class="number">-</td>' if is_number else "<td>-</td>"
    if not is_number:
        kind = ' class="long"' if len(text) > _LONG else ""
        return f"<td{kind}>{escape(text)}</td>"
    found = _NUMBER.search(text)
    value = f' data-value="{found[0].replace(",", "").lstrip("+")}"' if found else ""
    return f'<td class="number"{value}>{escape(text)}</td>'


def notes(found: Sequence[Note]) -> Iterator[str]:
    """Yield what is to be said below a table."""
    yield "<dl>"
    for note in found:
        kind = ' class="mind"' if "yellow" in note.style else ""
        yield f"<div{kind}><dt>{escape(note.title)}</dt><dd>{escape(note.text)}</dd></div>"
    yield "</dl>"


def _text(field: Field, row: Row, units: Units) -> str:
    return field.cell(row, units).plain
