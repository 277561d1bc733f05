"""What stands in the cells of the table that people read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from rich.text import Text

from kvbench.results.labels import BYTE_UNITS, TIME_UNITS, best_unit, number, strategy_label

Row = Mapping[str, Any]  # one row of the schema; what is missing is None
Unit = tuple[str, float]
Units = Mapping[str, Unit]

NOTHING = "-"
QUALITY = {  # fields of what is asked of a model
    "loss": "nll_delta_nats",
    "top1": "top1_agreement",
    "key_value": "recall_key_value",
    "passkey": "recall_passkey",
}
_MEASURED_IN: dict[str, Mapping[str, float]] = {"bytes": BYTE_UNITS, "ms": TIME_UNITS}
_UNIT_COLUMNS = {
    "kv": ("bytes", ("kv_allocated_bytes",)),
    "peak": ("bytes", ("peak_bytes",)),
    "ttft": ("ms", ("ttft_ms",)),
    "p50": ("ms", ("decode_p50_ms",)),
    "p99": ("ms", ("decode_p50_ms",)),  # the unit of the median beside it
}
_STATUS_WORDS = {"out_of_memory": "out of memory"}
_VERDICT_STYLES = {"faster": "green", "slower": "red"}


@dataclass(frozen=True, kw_only=True)
class Field:
    """One value of a row, and what it is called.

    Args:
        title: above the column.
        unit: fixed unit, or the key in `Units` of one that fits the values.
        text: what to print.
        justify: side on which the values line up.
    """

    title: str
    unit: str
    text: Callable[[Row, Units], str | Text]
    justify: Literal["left", "right"]

    def unit_in(self, units: Units) -> str:
        """Return the unit of the column's numbers."""
        return units[self.unit][0] if self.unit in units else self.unit

    def cell(self, row: Row, units: Units) -> Text:
        """Return the cell."""
        text = self.text(row, units)
        return text if isinstance(text, Text) else Text(text, style="dim" if text == NOTHING else "")


def plain(frame: pd.DataFrame) -> list[Row]:
    """Return the rows of a frame with None for what is missing."""
    rows: list[Row] = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return rows


def label_of(row: Row) -> str:
    """Return the strategy's name with its budget."""
    return strategy_label(row["strategy"], row["budget_unit"], row["budget_amount"])


def has_quality(rows: Sequence[Row]) -> bool:
    """Return whether a model was asked anything."""
    return any(row[column] is not None for row in rows for column in QUALITY.values())


def loss_tokens(row: Row) -> int:
    """Return the length of the contexts that a loss was measured behind."""
    quality = json.loads(row["config_json"]).get("quality") or {}
    own = quality.get("context_tokens") if row["nll_delta_high"] is None else None
    return int(own or row["prompt_tokens"])


def units_of(rows: Sequence[Row]) -> Units:
    """Return one unit for each column, so that its numbers can be compared at a glance."""
    found = {}
    for name, (kind, columns) in _UNIT_COLUMNS.items():
        values = [row[column] for row in rows for column in columns if row[column] is not None]
        found[name] = best_unit(values, _MEASURED_IN[kind])
    return found


def amount(column: str, unit: str) -> Callable[[Row, Units], str]:
    """Return what prints a column in a unit."""
    return lambda row, units: NOTHING if row[column] is None else number(row[column] / units[unit][1])


def percent(column: str) -> Callable[[Row, Units], str]:
    """Return what prints a share."""
    return lambda row, units: NOTHING if row[column] is None else f"{100 * row[column]:.1f}"


def _signed(column: str) -> Callable[[Row, Units], str]:
    return lambda row, units: NOTHING if row[column] is None else f"{row[column]:+.3f}"


def ratio_of(row: Row) -> tuple[float, float | None, float | None] | None:
    """Return a strategy's ratio with its interval: of decoding, or of the prefill where nothing was decoded."""
    name = "ttft_ratio" if row["ratio"] is None and row["decode_p50_ms"] is None else "ratio"
    if row["arm"] != "strategy" or row[name] is None:
        return None
    return row[name], row[f"{name}_low"], row[f"{name}_high"]


def _ratio(row: Row, units: Units) -> str:
    found = ratio_of(row)
    return NOTHING if found is None else f"{found[0]:.3f}"


def _interval(row: Row, units: Units) -> str:
    found = ratio_of(row)
    if found is None or found[1] is None or found[2] is None:
        return NOTHING
    return f"[{found[1]:.3f}, {found[2]:.3f}]"


def _ceiling(row: Row, units: Units) -> str:
    return NOTHING if ratio_of(row) is None or row["ceiling"] is None else f"{row['ceiling']:.2f}x"


def _verdict(row: Row, units: Units) -> str | Text:
    if row["status"] != "ok":
        return Text(_STATUS_WORDS.get(row["status"], str(row["status"])), "yellow")
    if row["arm"] == "baseline" or row["comparison"] == "none":
        return NOTHING
    if row["comparison"] == "unpaired":
        return "unpaired"
    if row["regime"] == "overhead_bound":
        return "overhead-bound"
    verdict, found = row["verdict"], ratio_of(row)
    if verdict in _VERDICT_STYLES and found is not None:
        times = 1 / found[0] if verdict == "faster" else found[0]
        return Text(f"{times:.2f}x {verdict}", _VERDICT_STYLES[verdict])
    return NOTHING if verdict in (None, "none") else str(verdict).replace("_", " ")


def word(column: str) -> Callable[[Row, Units], str]:
    """Return what prints a word."""
    return lambda row, units: NOTHING if row[column] is None else str(row[column])


FIELDS: dict[str, Field] = {
    "strategy": Field(title="strategy", unit="", text=lambda row, units: label_of(row), justify="left"),
    "kv": Field(title="KV", unit="kv", text=amount("kv_allocated_bytes", "kv"), justify="right"),
    "peak": Field(title="peak", unit="peak", text=amount("peak_bytes", "peak"), justify="right"),
    "ttft": Field(title="TTFT", unit="ttft", text=amount("ttft_ms", "ttft"), justify="right"),
    "p50": Field(title="TPOT p50", unit="p50", text=amount("decode_p50_ms", "p50"), justify="right"),
    "p99": Field(title="p99", unit="p99", text=amount("decode_p99_ms", "p99"), justify="right"),
    "ratio": Field(title="ratio", unit="", text=_ratio, justify="right"),
    "interval": Field(title="interval", unit="", text=_interval, justify="right"),
    "verdict": Field(title="verdict", unit="", text=_verdict, justify="left"),
    "ceiling": Field(title="ceiling", unit="", text=_ceiling, justify="right"),
    "loss": Field(title="loss", unit="nats", text=_signed("nll_delta_nats"), justify="right"),
    "top1": Field(title="top-1", unit="%", text=percent("top1_agreement"), justify="right"),
    "key_value": Field(title="recall", unit="%", text=percent("recall_key_value"), justify="right"),
    "passkey": Field(title="passkey", unit="%", text=percent("recall_passkey"), justify="right"),
    "saving": Field(title="saving", unit="", text=word("saving"), justify="left"),
}
