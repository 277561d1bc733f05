"""Which strategy keeps to what somebody can afford, from rows that were measured, and what was not measured.

A loss is never extrapolated, nor a time. Bytes at a length that was not measured are those of the closed form.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from kvbench.results.candidates import Candidate, Prefer, Recommendation, Wanted
from kvbench.results.cells import Row, label_of, loss_tokens, plain
from kvbench.results.control import no_better_than_random

ClosedForm = Callable[[Row, int, int], int | str]  # a cache's bytes at a length and a batch, or why nobody knows

BASELINE = "baseline"
_FORM_ERROR = 0.01  # of the closed form, where it can be held against what was measured
_KIND = ("model", "weights", "model_revision", "dtype", "device_name", "num_threads")
_ASKED = ("model", "weights", "workload", "prompt_tokens", "batch_size", "query_aware")
_WITHOUT_A_VERDICT = ("at_chance", "off_reference")


def recommend(frame: pd.DataFrame, wanted: Wanted, closed_form: ClosedForm, *, model: str = "") -> Recommendation:
    """Return the strategies of a tree of runs that keep to limits, the best first.

    Args:
        frame: as `kvbench.load` returns it.
        wanted: the limits.
        closed_form: tells a cache's bytes at a length that was not measured, or why it cannot.
        model: the only one that counts; "" where the tree has one.

    Raises:
        ValueError: if the tree has rows of several models or machines, or none of that model.
    """
    rows = _of_model(plain(frame), model)
    left_out: dict[str, list[str]] = {}
    groups: dict[str, list[Row]] = {}
    for row in rows:
        reason = _unfit(row, wanted)
        if reason is None:
            groups.setdefault(_settings(row), []).append(row)
        else:
            left_out.setdefault(reason, []).append(label_of(row))
    _refuse_many([row for group in groups.values() for row in group])
    beaten = _beaten(rows)
    found = []
    for name, group in zip(_names(groups), groups.values(), strict=True):
        made = _candidate(name, group, wanted, closed_form, beaten)
        if isinstance(made, Candidate):
            found.append(made)
        else:
            left_out.setdefault(made, []).append(name)
    ranked = sorted(found, key=lambda one: _order(one, wanted.prefer))
    return Recommendation(
        fitting=[one for one in ranked if not one.beyond],
        others=[one for one in ranked if one.beyond],
        left_out={reason: sorted(set(names)) for reason, names in left_out.items()},
    )


def _of_model(rows: Sequence[Row], model: str) -> list[Row]:
    mine = [row for row in rows if model in ("", row["model"])]
    if not mine:
        known = ", ".join(sorted({row["model"] for row in rows}))
        raise ValueError(f"--model: no row is of {model}; there are rows of {known}.")
    return mine


def _refuse_many(rows: Sequence[Row]) -> None:
    """Refuse rows that no limit could be held against together."""
    values = {name: sorted({str(row[name]) for row in rows}) for name in _KIND}
    apart = [f"{name} ({' / '.join(found)})" for name, found in values.items() if len(found) > 1]
    if apart:
        raise ValueError(
            f"a recommendation is for one model on one machine, and these rows differ in {', '.join(apart)}: "
            f"choose with --model, or give the folder of a sweep."
        )


def _beaten(rows: Sequence[Row]) -> dict[int, Sequence[str]]:
    """Return by which measures rows do not beat evicting at random, each beside those that were asked the same."""
    alike: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        alike.setdefault(tuple(row[name] for name in _ASKED), []).append(row)
    return {id(row): lost for group in alike.values() for row, lost in no_better_than_random(group)}


def _unfit(row: Row, wanted: Wanted) -> str | None:
    """Return why a row does not count, or None."""
    if row["status"] != "ok":
        return f"{row['status'].replace('_', ' ')}: {row['reason']}"
    if row["evidence"] != "measured":
        return f"{row['evidence']}, not measured"
    if row["weights"] == "random":
        return "random weights: nothing is known of the loss"
    if row["network"]:
        return "ran on another network than the model's own"
    if row["requests"]:
        return "served requests, whose bytes are those of a pool"
    if bool(row["query_aware"]) != wanted.query_aware:
        return "query-aware: --query-aware counts these" if row["query_aware"] else "not query-aware"
    if row["peak_bytes"] is None or row["weights_bytes"] is None or row["kv_allocated_bytes"] is None:
        return "its memory was not measured"
    return None


def _settings(row: Row) -> str:
    """Return what two runs of one strategy have in common; every full cache is the same one."""
    is_full = row["strategy"] == BASELINE and row["saving"] == "none" and row["fidelity"] == "exact"
    if row["arm"] == BASELINE or is_full:
        return BASELINE
    config = json.loads(row["config_json"])
    return json.dumps([row["strategy"], config.get("strategy"), config.get("engine")], sort_keys=True)


def _names(groups: Mapping[str, Sequence[Row]]) -> list[str]:
    names = [label_of(group[0]) for group in groups.values()]
    return [
        f"{name} ({group[0]['run_id']})" if names.count(name) > 1 else name
        for name, group in zip(names, groups.values(), strict=True)
    ]


def _candidate(
    name: str, rows: Sequence[Row], wanted: Wanted, closed_form: ClosedForm, beaten: Mapping[int, Sequence[str]]
) -> Candidate | str:
    """Return what is known of a strategy, or why that is not enough."""
    losses = [(loss_tokens(row), *_loss(row)) for row in rows if row["nll_delta_nats"] is not None]
    if rows[0]["arm"] == BASELINE or _settings(rows[0]) == BASELINE:
        losses = [(wanted.context, True, 0.0)]
    if not losses:
        return "its loss was not measured beside the full cache's"
    tokens, has_interval, loss = max(losses)
    sized = _sized(rows, wanted, closed_form)
    if isinstance(sized, str):
        return sized
    row, needed, kv_bytes = sized
    times = [one for one in rows if one["arm"] != BASELINE and one["ratio"] is not None]
    made = Candidate(
        name=name,
        row=row,
        needed_bytes=needed,
        kv_bytes=kv_bytes,
        is_modelled=not _is_asked(row, wanted),
        loss=loss,
        has_interval=has_interval,
        loss_tokens=tokens,
        timed=max(times, key=lambda one: (_is_asked(one, wanted), one["prompt_tokens"]), default=None),
        beyond=(),
        remarks=tuple(_remarks(rows, beaten)),
    )
    return replace(made, beyond=tuple(_beyond(made, wanted)))


def _is_asked(row: Row, wanted: Wanted) -> bool:
    return (row["prompt_tokens"], row["batch_size"]) == wanted.shape


def _loss(row: Row) -> tuple[bool, float]:
    """Return whether there is an interval, and its upper end or else the loss."""
    high = row["nll_delta_high"]
    return (False, float(row["nll_delta_nats"])) if high is None else (True, float(high))


def _sized(rows: Sequence[Row], wanted: Wanted, closed_form: ClosedForm) -> tuple[Row, float, float] | str:
    """Return a row, what it needs in all and its cache's bytes, at the length that is wanted; or why nobody knows."""
    same = [row for row in rows if _is_asked(row, wanted)]
    if same:
        row = max(same, key=lambda one: one["weights_bytes"] + one["peak_bytes"])
        return row, row["weights_bytes"] + row["peak_bytes"], row["kv_allocated_bytes"]
    tokens = wanted.context * wanted.batch
    row = min(rows, key=lambda one: (_apart(one, tokens), -one["peak_bytes"]))
    where = f"not measured at {wanted.context:,} tokens, batch {wanted.batch}"
    if row["data_dependent"]:
        return f"{where}, and its bytes have no closed form: they depend on the data"
    here, there = (closed_form(row, *at) for at in ((row["prompt_tokens"], row["batch_size"]), wanted.shape))
    for made in (here, there):
        if isinstance(made, str):
            return f"{where}: {made}"
    assert isinstance(here, int)
    assert isinstance(there, int)
    measured = row["kv_allocated_bytes"]
    if abs(here - measured) > _FORM_ERROR * max(measured, 1):
        return f"{where}, and its closed form, which knows no weights, does not say the bytes that were"
    grown = max(1.0, tokens / (row["prompt_tokens"] * row["batch_size"]))
    rest = max(0, row["peak_bytes"] - measured)
    return row, row["weights_bytes"] + there + rest * grown, there


def _apart(row: Row, tokens: int) -> float:
    """Return how far a row is from so many tokens, alike in both directions."""
    return abs(math.log(row["prompt_tokens"] * row["batch_size"] / tokens))


def _beyond(one: Candidate, wanted: Wanted) -> Iterator[str]:
    if one.needed_bytes > wanted.memory:
        yield "memory"
    if one.loss > wanted.loss:
        yield "loss"
    if wanted.slowdown == math.inf or _settings(one.row) == BASELINE:
        return
    if not one.tells_time:
        yield "time: nothing shown"
    elif one.timed is not None and one.timed["ratio_high"] > wanted.slowdown:
        yield "time"


def _remarks(rows: Sequence[Row], beaten: Mapping[int, Sequence[str]]) -> Iterator[str]:
    for row in rows:
        asked = f"{row['workload']} of {row['prompt_tokens']:,} tokens"
        if row["score_verdict"] == "worse":
            yield f"its score on {asked} is {-100 * row['score_delta']:.1f} points below the full cache's"
        elif row["score_verdict"] in _WITHOUT_A_VERDICT:
            yield f"its score on {asked} says nothing: {row['score_reason']}"
        if id(row) in beaten:
            yield f"it does not beat random_eviction in {', '.join(beaten[id(row)])} ({asked})"


def _order(one: Candidate, prefer: Prefer) -> tuple[float, ...]:
    orders = {
        "speed": (one.time, one.needed_bytes, not one.has_interval, one.loss),
        "memory": (one.needed_bytes, one.time, not one.has_interval, one.loss),
        "loss": (one.loss, not one.has_interval, one.time, one.needed_bytes),
    }
    return orders[prefer]
