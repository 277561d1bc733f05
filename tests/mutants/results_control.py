"""Judges that are unfair to a method or to chance."""

from __future__ import annotations

from collections.abc import Sequence

from kvbench.results.cells import Row
from kvbench.results.control import no_better_than_random


def compares_across_budgets(rows: Sequence[Row]) -> list[tuple[Row, list[str]]]:
    """Hold every row to the control, whatever it was given."""
    same = [{**row, "budget_amount": 0.25} for row in rows]
    return no_better_than_random(same)


def compares_across_bytes(rows: Sequence[Row]) -> list[tuple[Row, list[str]]]:
    """Hold every row to the control, however much that holds."""
    same = [{**row, "kv_allocated_bytes": 2**20} for row in rows]
    return no_better_than_random(same)


def wants_a_lower_recall(rows: Sequence[Row]) -> list[tuple[Row, list[str]]]:
    """Take recall for a loss."""
    turned = [{**row, "recall_key_value": -float(str(row["recall_key_value"] or 0))} for row in rows]
    return no_better_than_random(turned)
