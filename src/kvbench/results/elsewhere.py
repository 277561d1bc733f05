"""What a table says of caches that lie elsewhere than on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from kvbench.results.cells import NOTHING, Field, Row, Units, amount, percent, word
from kvbench.results.labels import BYTE_UNITS, best_unit, number

COLUMNS = (
    ("strategy", "binding"),
    ("share",),
    ("host", "disk"),
    ("brings", "takes"),
    ("hits", "again"),
    ("waits", "hidden"),
    ("stall", "link"),
    ("predicted", "over"),
)


def away(row: Row) -> bool:
    """Return whether some of a row's cache lies elsewhere."""
    return bool(row["host_bytes"] or row["disk_bytes"])


def columns_of(rows: Sequence[Row]) -> tuple[tuple[str, ...], ...]:
    """Return the columns in which such rows say something, each of one field or two."""
    units = units_of(rows)
    told = {name for name, field in FIELDS.items() if any(field.text(row, units) != NOTHING for row in rows)}
    columns = (tuple(name for name in column if name in {"strategy", *told}) for column in COLUMNS)
    return tuple(column for column in columns if column)


def units_of(rows: Sequence[Row]) -> Units:
    """Return a unit for what lies elsewhere, one for what comes and one for what goes."""
    held = [row[name] or 0 for row in rows for name in ("host_bytes", "disk_bytes")]
    came, went = ([found for row in rows if (found := way(row)) is not None] for way in (_came, _went))
    return {name: best_unit(values, BYTE_UNITS) for name, values in (("held", held), ("came", came), ("went", went))}


def notes(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Yield titles and sentences that say what the columns are, and what they mean here."""
    yield "elsewhere", "bytes there at the end; what a step brings, and takes there; tokens of layers made again"
    if any(row["host_share"] is not None for row in rows):
        yield (
            "share",
            "of each layer on the host: the least with which the device has room (strategy.placement.host=fit)",
        )
    yield "waits", "layers whose entries had not come, and the time they waited; which share of the fetching was hidden"
    if any(row["hit_share"] is not None for row in rows):
        yield "hits", "of the pages a step reads of what has left, those that lay on the device already"
    yield "predicted", "by the cost model from what moved, the baseline and what binds; over: times as long it took"
    if any(row["prediction"] == "no_rate" for row in rows):
        model = next(row["model"] for row in rows)
        yield "predicted", f"nothing where no record of this machine tells: kvbench hardware model={model}"
    if any(row["disk_bytes"] for row in rows):
        is_cold = any(row["disk_cold"] for row in rows)
        yield "disk", "is read again by every step (cold)" if is_cold else "is read from memory that keeps files (warm)"
    if any(row["host_bytes"] for row in rows if row["device"] == "cpu"):
        yield "host", "on a CPU host and device are two pools of one memory: no time above is that of a link"


def _came(row: Row) -> float | None:
    return _sum(row["up_bytes_per_step"], row["disk_read_bytes_per_step"])


def _went(row: Row) -> float | None:
    return _sum(row["down_bytes_per_step"], row["disk_written_bytes_per_step"])


def _sum(first: float | None, second: float | None) -> float | None:
    return None if first is None and second is None else (first or 0) + (second or 0)


def _moved(way: Callable[[Row], float | None], unit: str) -> Callable[[Row, Units], str]:
    def text(row: Row, units: Units) -> str:
        found = way(row)
        return NOTHING if found is None else number(found / units[unit][1])

    return text


def _whole(row: Row, units: Units) -> str:
    again = row["recomputed_tokens_per_step"]
    return f"{again:,.0f}" if again else NOTHING


def _times(row: Row, units: Units) -> str:
    over = row["measured_over_predicted"]
    return NOTHING if over is None else f"{over:.2f}x"


def _bytes(column: str) -> Callable[[Row, Units], str]:
    return lambda row, units: amount(column, "held")(row, units) if row[column] else NOTHING


def _milliseconds(column: str) -> Callable[[Row, Units], str]:
    return lambda row, units: NOTHING if row[column] is None else number(row[column])


FIELDS: dict[str, Field] = {
    "host": Field(title="host", unit="held", text=_bytes("host_bytes"), justify="right"),
    "disk": Field(title="disk", unit="held", text=_bytes("disk_bytes"), justify="right"),
    "share": Field(title="share", unit="%", text=percent("host_share"), justify="right"),
    "brings": Field(title="brings", unit="came", text=_moved(_came, "came"), justify="right"),
    "takes": Field(title="takes", unit="went", text=_moved(_went, "went"), justify="right"),
    "again": Field(title="again", unit="tokens", text=_whole, justify="right"),
    "waits": Field(title="waits", unit="%", text=percent("wait_share"), justify="right"),
    "hidden": Field(title="hidden", unit="%", text=percent("overlap_share"), justify="right"),
    "hits": Field(title="hits", unit="%", text=percent("hit_share"), justify="right"),
    "stall": Field(title="stall", unit="ms", text=_milliseconds("stall_ms_per_step"), justify="right"),
    "predicted": Field(title="predicted", unit="ms", text=_milliseconds("predicted_ms"), justify="right"),
    "over": Field(title="over", unit="", text=_times, justify="right"),
    "binding": Field(title="binding", unit="", text=word("binding_resource"), justify="left"),
    "link": Field(title="link", unit="ms", text=_milliseconds("modelled_link_ms"), justify="right"),
}
