"""What a table says of requests that were served."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from kvbench.results.cells import NOTHING, Field, Row, Units, amount, percent
from kvbench.results.labels import BYTE_UNITS, TIME_UNITS, best_unit, number

COLUMNS = (
    ("strategy",),
    ("serve", "goodput"),
    ("first", "first_p99"),
    ("whole", "whole_p99"),
    ("wait", "fairness"),
    ("computed", "reused"),
    ("held", "filled"),
    ("preempted", "same"),
)
_MS = ("ttft_ms", "ttft_p99_ms", "e2e_p50_ms", "e2e_p99_ms", "max_wait_ms")


def units_of(rows: Sequence[Row]) -> Units:
    """Return a unit for times of requests and one for what they held."""
    times = [row[name] for row in rows for name in _MS if row[name] is not None]
    held = [row["kv_used_bytes"] for row in rows if row["kv_used_bytes"] is not None]
    return {"times": best_unit(times, TIME_UNITS), "held": best_unit(held, BYTE_UNITS)}


def notes(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Yield titles and sentences that say what the columns are, and what they mean here."""
    sharing = next((row["sharing"] for row in rows if row["sharing"] is not None), None)
    if sharing is not None:
        yield "requests", f"their prompts have {sharing:.2f} times as many tokens as the tree that they make together"
    yield "baseline", "the same requests, first come, first served, each on its own"
    yield "total", "time of all; kept: requests a second that kept to workload.ttft_target_ms and tpot_target_ms"
    yield "end", "time from arrival to the last token; wait: the longest to the first pass; fair: Jain's index"
    yield "read", "tokens of prompts that passes read, and those whose entries were there already"
    yield "held", "most that requests under way held at once, and which share of the slots of their pages had entries"
    yield "lost", "how often a request's pages were taken away; same: requests that got the baseline's very tokens"


def _count(column: str) -> Callable[[Row, Units], str]:
    return lambda row, units: NOTHING if row[column] is None else f"{row[column]:,}"


def _real(column: str) -> Callable[[Row, Units], str]:
    return lambda row, units: NOTHING if row[column] is None else number(row[column])


FIELDS: dict[str, Field] = {
    "serve": Field(title="total", unit="s", text=_real("serve_s"), justify="right"),
    "goodput": Field(title="kept", unit="/s", text=_real("goodput_per_s"), justify="right"),
    "first": Field(title="TTFT p50", unit="times", text=amount("ttft_ms", "times"), justify="right"),
    "first_p99": Field(title="p99", unit="times", text=amount("ttft_p99_ms", "times"), justify="right"),
    "whole": Field(title="end p50", unit="times", text=amount("e2e_p50_ms", "times"), justify="right"),
    "whole_p99": Field(title="p99", unit="times", text=amount("e2e_p99_ms", "times"), justify="right"),
    "wait": Field(title="wait", unit="times", text=amount("max_wait_ms", "times"), justify="right"),
    "fairness": Field(title="fair", unit="%", text=percent("fairness"), justify="right"),
    "computed": Field(title="read", unit="", text=_count("prefill_tokens_computed"), justify="right"),
    "reused": Field(title="there", unit="", text=_count("prefill_tokens_reused"), justify="right"),
    "held": Field(title="held", unit="held", text=amount("kv_used_bytes", "held"), justify="right"),
    "filled": Field(title="full", unit="%", text=percent("page_utilisation"), justify="right"),
    "preempted": Field(title="lost", unit="", text=_count("preemptions"), justify="right"),
    "same": Field(title="same", unit="%", text=percent("same_share"), justify="right"),
}
