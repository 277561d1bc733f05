"""Whether a method is worth its scores: beside evicting at random, at the same budget."""

from __future__ import annotations

from collections.abc import Sequence

from kvbench.results.cells import Row

CONTROL = "random_eviction"
HOLDS_MORE = 1.05  # times a row's bytes, above which the control is no fair one
_MEASURES = (
    ("score", "score", 1),
    ("nll_nats", "loss", -1),
    ("recall_key_value", "key-value recall", 1),
    ("recall_passkey", "pass key", 1),
)


def no_better_than_random(rows: Sequence[Row]) -> list[tuple[Row, list[str]]]:
    """Return the rows that do not beat the control, and by which measures of quality.

    A control that holds more bytes, as it forgets nothing while decoding or packs nothing, is none.

    Args:
        rows: of one model and workload; without the control among them nothing is returned.
    """
    controls = {_budget(row): row for row in rows if row["strategy"] == CONTROL and row["status"] == "ok"}
    found = []
    for row in rows:
        control = controls.get(_budget(row))
        if control is None or row["strategy"] == CONTROL or row["status"] != "ok" or row["budget_amount"] is None:
            continue
        if control["kv_allocated_bytes"] > HOLDS_MORE * row["kv_allocated_bytes"]:
            continue
        lost = [title for name, title, sign in _MEASURES if _is_no_better(row[name], control[name], sign)]
        if lost:
            found.append((row, lost))
    return found


def _budget(row: Row) -> tuple[object, object]:
    return row["budget_unit"], row["budget_amount"]


def _is_no_better(mine: object, control: object, sign: int) -> bool:
    if not isinstance(mine, int | float) or not isinstance(control, int | float):
        return False
    return sign * mine <= sign * control and not (sign > 0 and mine == control == 1.0)
