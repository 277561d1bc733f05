"""Recommendations that count what must not count, or leave out what must."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from kvbench.results.candidates import Recommendation, Wanted
from kvbench.results.recommend import ClosedForm, recommend

Advise = Callable[[pd.DataFrame, Wanted, ClosedForm], Recommendation]


def seen_as(change: Callable[[pd.DataFrame], dict[str, object]]) -> Advise:
    """Return who reads other numbers than those in the rows."""
    return lambda frame, wanted, form: recommend(frame.assign(**change(frame)), wanted, form)


def extrapolated_losses(frame: pd.DataFrame, wanted: Wanted, form: ClosedForm) -> Recommendation:
    """Take the loss of the shortest context for that of the longest."""
    return recommend(frame.sort_values("prompt_tokens").drop_duplicates(["strategy", "arm"]), wanted, form)


def cache_alone(frame: pd.DataFrame, wanted: Wanted, form: ClosedForm) -> Recommendation:
    """Forget that the rest of the peak grows with the prompt."""
    return recommend(frame.assign(peak_bytes=frame["kv_allocated_bytes"]), wanted, form)


def believed(form: ClosedForm) -> ClosedForm:
    """Return a form that is right where somebody looks, whatever it says elsewhere."""
    return lambda row, context, batch: (
        int(row["kv_allocated_bytes"]) if context == row["prompt_tokens"] else form(row, context, batch)
    )


MUTANTS: list[Advise] = [
    seen_as(lambda frame: {"nll_delta_high": frame["nll_delta_nats"]}),  # the middle of the interval
    seen_as(lambda frame: {"ratio_high": frame["ratio"]}),
    seen_as(lambda frame: {"weights_bytes": 0}),
    seen_as(lambda frame: {"weights": "embedded"}),
    seen_as(lambda frame: {"query_aware": False}),
    seen_as(lambda frame: {"evidence": "measured"}),
    seen_as(lambda frame: {"network": None}),
    seen_as(lambda frame: {"regime": "memory_bound"}),
    cache_alone,
]
FORMS: list[Advise] = [
    cache_alone,
    extrapolated_losses,
    seen_as(lambda frame: {"data_dependent": False}),
    lambda frame, wanted, form: recommend(frame, wanted, believed(form)),
    lambda frame, wanted, form: recommend(frame, wanted, lambda row, context, batch: int(row["kv_allocated_bytes"])),
]
