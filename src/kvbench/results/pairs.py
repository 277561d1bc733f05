"""Pairs of runs as people read them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from kvbench.results.cells import NOTHING
from kvbench.results.labels import BYTE_UNITS, best_unit, number
from kvbench.results.notes import Note

_KIND = ["model", "weights", "workload", "batch_size", "prompt_tokens", "query_aware", "device_name"]
_NARROW = (
    ("a", "b"),
    ("phase", "time"),
    ("a/full", "b/full"),
    ("a/b", "interval"),
    ("KV a", "KV b"),
    ("KV a/b", "loss a-b"),
)
_WORDS = ("a", "b", "phase", "time")
_WIDE = 10_000


def names_of(pairs: pd.DataFrame) -> list[tuple[str, str]]:
    """Return what the sides of each pair are called: the strategy, and its run where that would not tell."""
    called = []
    for side in ("a", "b"):
        runs = [f"run_id_{side}", f"sweep_{side}"]
        times = pairs.drop_duplicates([*_KIND, *runs]).groupby([*_KIND, f"strategy_{side}"], dropna=False).size()
        many = set(times[times > 1].index.get_level_values(f"strategy_{side}"))
        called.append(
            [
                f"{name} ({run})" if name in many else name
                for name, run in zip(pairs[f"strategy_{side}"], pairs[runs[0]], strict=True)
            ]
        )
    return list(zip(*called, strict=True))


def print_pairs(pairs: pd.DataFrame, console: Console) -> None:
    """Show pairs of runs, a table for each model, workload and device.

    Args:
        pairs: as `kvbench.compare` returns them.
        console: to print on.
    """
    named = pairs.assign(name=names_of(pairs))
    for kind, mine in named.groupby(_KIND, sort=False, dropna=False):
        model, _, workload, batch_size, tokens, aware, device = kind
        question = ", question in the cache" if aware is True else ""
        what = f" | {workload}: {tokens:,} tokens, batch {batch_size}{question} | {device}"
        console.print(
            Text(), Text.assemble((str(model), "bold"), what), Text(), _table(mine, console.width), Text(), sep="\n"
        )
    for title, text in _notes(pairs):
        console.print(Note(title, text))


def _table(pairs: pd.DataFrame, width: int) -> Table:
    held = [*pairs["kv_allocated_bytes_a"].dropna(), *pairs["kv_allocated_bytes_b"].dropna()]
    unit, size = best_unit(held, BYTE_UNITS)
    cells = [_cells(pair, size) for pair in pairs.to_dict("records")]
    heads = {name: f"{name} {unit}" if name in ("KV a", "KV b") else name for name in cells[0]}
    tables = [_laid_out(layout, heads, cells) for layout in (tuple((name,) for name in heads), _NARROW)]
    console = Console(width=_WIDE)
    return next(
        (table for table in tables if Measurement.get(console, console.options, table).maximum <= width), tables[-1]
    )


def _cells(pair: dict[Hashable, Any], size: float) -> dict[str, Text]:
    """Return what stands in a row, by column."""
    a, b = pair["name"]
    cells: dict[str, str | Text] = {
        "a": a,
        "b": b,
        "phase": pair["phase"],
        "time": _says(pair["low"], pair["high"]),
        "a/full": f"{pair['ratio_a']:.3f}",
        "b/full": f"{pair['ratio_b']:.3f}",
        "a/b": f"{pair['ratio']:.3f}",
        "interval": f"[{pair['low']:.3f}, {pair['high']:.3f}]",
        "KV a": _told(pair["kv_allocated_bytes_a"], size),
        "KV b": _told(pair["kv_allocated_bytes_b"], size),
        "KV a/b": _told(pair["kv_ratio"], 1),
        "loss a-b": NOTHING if pd.isna(pair["nll_difference"]) else f"{pair['nll_difference']:+.4f}",
    }
    return {name: cell if isinstance(cell, Text) else Text(cell) for name, cell in cells.items()}


def _laid_out(layout: Sequence[tuple[str, ...]], heads: Mapping[str, str], rows: Sequence[Mapping[str, Text]]) -> Table:
    """Return a table whose columns have one cell to a row, or two, one above the other."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in layout:
        title = Text("\n").join(Text(heads[name], "bold") for name in column)
        table.add_column(title, justify="left" if column[0] in _WORDS else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text("\n").join(row[name] for name in column) for column in layout))
    return table


def _says(low: float, high: float) -> Text:
    if low > 1:
        return Text("a takes longer", "red")
    return Text("a is faster", "green") if high < 1 else Text("no difference", "dim")


def _told(value: float, size: float) -> str:
    return NOTHING if pd.isna(value) else number(value / size)


def _notes(pairs: pd.DataFrame) -> Iterator[tuple[str, str]]:
    yield (
        "a/full",
        "a's time over that of the full cache beside it; a/b: one such ratio over the other, with its interval",
    )
    yield "KV", "all storages of the cache on the device"
    other = "; empty where nothing was asked, or where seed, quality or workload differ: losses of other tokens"
    yield "loss", f"nats per token{other if pairs['nll_difference'].isna().any() else ''}"
