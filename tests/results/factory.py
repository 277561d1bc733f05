"""Rows and steps as a runner would hand them over, made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from kvbench.results.folder import Finished, open_draft
from kvbench.results.records import Record, run_table, to_frame

MIB = 2**20

_IDENTITY: dict[str, object] = {
    "created_at": "2026-11-21T10:00:00Z",
    "model": "tiny",
    "engine": "eager",
    "workload": "decode",
    "seed": 0,
    "config_hash": "c0ffee",
    "config_json": json.dumps({"seed": 0, "strategy": {"name": "x"}, "measure": {"threads": 1}}),
    "overrides": "strategy=h2o",
    "source_hash": "5eed",
    "device": "cpu",
    "evidence": "measured",
    "comparison": "paired",
    "batch_size": 1,
    "prompt_tokens": 1024,
    "new_tokens": 64,
}
_ORIGIN: dict[str, object] = {
    "weights": "embedded",
    "device_name": "AMD EPYC",
    "cpu_model": "AMD EPYC",
    "num_cpus": 2,
    "num_threads": 1,
    "dtype": "float32",
    "attention": "kvbench",
    "query_aware": False,
    "data_dependent": False,
}
_NUMBERS: dict[str, object] = {
    "regime": "memory_bound",
    "statistic": "median",
    "ttft_ms": 182.4,
    "tpot_ms": 12.7,
    "decode_p50_ms": 12.5,
    "decode_p90_ms": 13.1,
    "decode_p95_ms": 13.4,
    "decode_p99_ms": 14.9,
    "decode_max_ms": 15.2,
    "decode_mean_ms": 12.7,
    "kv_allocated_bytes": 34 * MIB,
    "kv_used_bytes": 34 * MIB,
    "peak_bytes": 40 * MIB,
    "nll_nats": 2.61,
    "nll_delta_nats": 0.0,
    "kl_nats": 0.0,
    "top1_agreement": 1.0,
    "recall_key_value": 0.984,
    "recall_passkey": 1.0,
}
QUALITY = ("nll_nats", "nll_delta_nats", "kl_nats", "top1_agreement", "recall_key_value", "recall_passkey")
COMPARED: dict[str, object] = {
    "verdict": "faster",
    "saving": "physical",
    "fidelity": "lossy_training_free",
    "budget_unit": "ratio",
    "budget_amount": 0.25,
    "ratio": 0.614,
    "ratio_low": 0.603,
    "ratio_high": 0.627,
    "ceiling": 2.18,
    "decode_p50_ms": 7.7,
    "decode_p99_ms": 9.1,
    "kv_allocated_bytes": 9 * MIB,
    "peak_bytes": 13 * MIB,
    "nll_delta_nats": 0.0834,
    "top1_agreement": 0.934,
    "recall_key_value": 0.703,
    "recall_passkey": 0.91,
}


def baseline(**values: object) -> dict[str, object]:
    """Return the row of a baseline's arm."""
    own = {"arm": "baseline", "strategy": "baseline", "status": "ok", "saving": "none", "fidelity": "exact"}
    return {**_IDENTITY, **_ORIGIN, **_NUMBERS, **own, **values}


def row(strategy: str, **values: object) -> dict[str, object]:
    """Return the row of a strategy's arm that went well."""
    own = {"arm": "strategy", "strategy": strategy, "status": "ok"}
    return {**_IDENTITY, **_ORIGIN, **_NUMBERS, **COMPARED, **own, **values}


def failed(strategy: str, status: str, reason: str, **values: object) -> dict[str, object]:
    """Return the row of a strategy's arm that has no numbers."""
    own = {"arm": "strategy", "strategy": strategy, "status": status, "reason": reason, "saving": "physical"}
    return {**_IDENTITY, **_ORIGIN, "budget_unit": "ratio", "budget_amount": 0.25, **own, **values}


def without_quality(record: Record) -> dict[str, object]:
    """Return the row as random weights would leave it."""
    return {**record, **dict.fromkeys(QUALITY), "weights": "random"}


def steps(
    times_ms: Sequence[Sequence[float]], *, arm: str = "strategy", prompt_tokens: int = 1024
) -> list[dict[str, object]]:
    """Return decode steps, a block for each round.

    Args:
        times_ms: per round, of its steps.
        arm: whose.
        prompt_tokens: seen before each block.
    """
    return [
        {
            "arm": arm,
            "round": number,
            "block": number,
            "index_in_block": index,
            "phase": "decode",
            "position": prompt_tokens + index,
            "tokens": 1,
            "wall_ns": round(ms * 1e6),
            "event_ms": None,
            "is_clean": True,
        }
        for number, block in enumerate(times_ms)
        for index, ms in enumerate(block)
    ]


def frame(*runs: Sequence[Record]) -> pd.DataFrame:
    """Return runs as `load` would, named r0, r1, ...

    Args:
        runs: each the rows of its arms.
    """
    return pd.concat([to_frame(run_table(rows, run_id=f"r{index}", sweep="adhoc")) for index, rows in enumerate(runs)])


def write(
    runs: Path,
    run_id: str,
    rows: Sequence[Record],
    timed: Sequence[Record] = (),
    *,
    sweep: str = "adhoc",
    force: bool = False,
    requests: Sequence[Record] = (),
    samples: Sequence[Record] = (),
) -> Finished:
    """Write a run as the runner would.

    Args:
        runs: where results go.
        run_id: its name.
        rows: one per arm.
        timed: its steps.
        sweep: folder of its sweep.
        force: whether to repeat it beside a finished one.
        requests: what it served.
        samples: what it was asked.
    """
    with open_draft(runs, sweep=sweep, run_id=run_id, force=force) as draft:
        draft.write_text("config.yaml", "seed: 0\n")
        draft.log("written by hand")
        return draft.finish(rows, timed, requests, samples)
