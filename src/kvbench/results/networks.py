"""What a table says of rows that ran on other networks than the baseline's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvbench.results.cells import NOTHING, Field, Row, Units, amount
from kvbench.results.labels import BYTE_UNITS, best_unit

COLUMNS = (("strategy",), ("weights",), ("loss",), ("bits",), ("prefill",), ("interval",))


def units_of(rows: Sequence[Row]) -> Units:
    """Return a unit for weights."""
    found = [row["weights_bytes"] for row in rows if row["weights_bytes"] is not None]
    return {"weights": best_unit(found, BYTE_UNITS)}


def _decimals(column: str) -> Callable[[Row, Units], str]:
    return lambda row, units: NOTHING if row[column] is None else f"{row[column]:.3f}"


def _interval(row: Row, units: Units) -> str:
    ends = (row["ttft_ratio_low"], row["ttft_ratio_high"])
    return NOTHING if None in ends else "[{:.3f}, {:.3f}]".format(*ends)


FIELDS: dict[str, Field] = {
    "weights": Field(title="weights", unit="weights", text=amount("weights_bytes", "weights"), justify="right"),
    "loss": Field(title="loss", unit="nats", text=_decimals("nll_nats"), justify="right"),
    "bits": Field(title="loss", unit="bits/byte", text=_decimals("bits_per_byte"), justify="right"),
    "prefill": Field(title="prefill", unit="ratio", text=_decimals("ttft_ratio"), justify="right"),
    "interval": Field(title="interval", unit="", text=_interval, justify="right"),
}
