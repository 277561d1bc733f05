"""Runs against each other, by what each made of the baseline beside it.

Two runs are two processes, and what lies between their times is the machine's mood as much as the strategies'. Each
was timed block by block beside its own baseline, though, so those ratios are compared, not the times.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvbench.results.labels import labels
from kvbench.results.load import load

RESAMPLES = 2000
CONFIDENCE = 0.95
_SAME = ["model", "weights", "workload", "batch_size", "prompt_tokens", "query_aware", "device_name", "phase"]
_RUN = ["sweep", "run_id"]
_BESIDE = ["kv_allocated_bytes", "nll_nats"]
_SCORED = ("seed", "quality", "workload")  # keys of the configuration that say which tokens a loss is of


def compare(a: str | Path, b: str | Path, *, same_strategy: bool = False) -> pd.DataFrame:
    """Return how the runs of one folder did against those of another, recomputed from the timed steps.

    Every run of `a` meets every run of `b` with the same model, workload, lengths and device.

    Args:
        a: folder of a run or of many.
        b: folder of a run or of many.
        same_strategy: whether only runs of one strategy meet, with the same settings as far as both sides have them.

    Returns:
        One row per pair and phase: the sides' names, each side's time over its own baseline's with its 95% interval
        (`ratio_a`, `low_a`, `high_a`, ...), and `ratio`, `low`, `high` of a's over b's: below 1, a is faster. Then
        `kv_ratio` of a's bytes over b's, and `nll_difference`, a's loss less b's, empty where `seed`, `quality` or
        `workload` differ: those are losses on other tokens.
    """
    ours, theirs = _side(a, seed=0), _side(b, seed=1)
    pairs = ours.merge(theirs, on=_SAME, suffixes=("_a", "_b"))
    if pairs.empty:
        raise ValueError(
            f"no run below {a} has the {', '.join(_SAME[:-1])} of one below {b}: {_differing(ours, theirs)}."
        )
    if same_strategy:
        pairs = pairs[[_is_same(*sides) for sides in zip(pairs["settings_a"], pairs["settings_b"], strict=True)]]
        if pairs.empty:
            raise ValueError(f"no strategy below {a} is one below {b} with the same settings; compare all of them.")
    tails = [_tails(a / b) for a, b in zip(pairs["drawn_a"], pairs["drawn_b"], strict=True)]
    is_scored_alike = pairs["scored_a"] == pairs["scored_b"]
    return pairs.assign(
        ratio=pairs["ratio_a"] / pairs["ratio_b"],
        low=[low for low, _ in tails],
        high=[high for _, high in tails],
        kv_ratio=pairs["kv_allocated_bytes_a"] / pairs["kv_allocated_bytes_b"].mask(pairs["kv_allocated_bytes_b"] == 0),
        nll_difference=(pairs["nll_nats_a"] - pairs["nll_nats_b"]).where(is_scored_alike),
    ).drop(columns=[f"{name}_{side}" for name in ("drawn", "scored", "settings") for side in "ab"])


def _differing(ours: pd.DataFrame, theirs: pd.DataFrame) -> str:
    """Return what keeps two sides apart."""
    apart = [name for name in _SAME[:-1] if not set(ours[name]) & set(theirs[name])]
    if not apart:
        return "each of these is on both sides, but not together"
    values = (" / ".join(", ".join(sorted(map(str, set(side[name])))) for side in (ours, theirs)) for name in apart)
    return f"they differ in {', '.join(f'{name} ({value})' for name, value in zip(apart, values, strict=True))}"


def _is_same(a: dict[str, str], b: dict[str, str]) -> bool:
    return all(a[name] == b[name] for name in a.keys() & b.keys())


def round_ratios(steps: pd.DataFrame) -> pd.Series:
    """Return the strategy's block over the baseline's, for each round in which both were left alone.

    Args:
        steps: as `kvbench.load(path, steps=True)` returns them.

    Returns:
        Ratios, indexed by sweep, run_id, phase and round.
    """
    ms = steps["event_ms"].where(steps["event_ms"].notna(), steps["wall_ns"] / 1e6).astype(float)
    block = ["sweep", "run_id", "phase", "arm", "round", "block"]
    length = steps.groupby(block)["index_in_block"].transform("size")
    kept = steps.assign(ms=ms)[steps["is_clean"] & ((steps["index_in_block"] > 0) | (length == 1))]
    blocks = kept.groupby(["sweep", "run_id", "phase", "round", "arm"])["ms"]
    median, mean = (_over_baseline(centre.unstack("arm")) for centre in (blocks.median(), blocks.mean()))
    asked = steps[steps["arm"] == "strategy"].groupby(["sweep", "run_id"])["statistic"].first()
    is_mean = median.index.droplevel(["phase", "round"]).isin(asked.index[asked.eq("mean").fillna(value=False)])
    return median.mask(pd.Series(is_mean, index=median.index), mean).dropna()


def _over_baseline(blocks: pd.DataFrame) -> pd.Series:
    both = blocks.reindex(columns=["strategy", "baseline"])
    return both["strategy"] / both["baseline"]


def _side(path: str | Path, *, seed: int) -> pd.DataFrame:
    steps = load(path, steps=True)
    steps = steps[steps["comparison"] == "paired"]
    run = ["sweep", "run_id", "phase"]
    ratios = round_ratios(steps).groupby(level=run).agg(list)
    ratios = ratios[ratios.map(len) >= 2]
    if ratios.empty:
        raise ValueError(f"no run below {path} was timed beside a baseline for two rounds: use compare=baseline.")
    timed = steps[steps["arm"] == "strategy"]
    known = timed.assign(strategy=labels(timed)).drop_duplicates(run)[[*run, "strategy", *_SAME[:-1]]]
    table = known.merge(ratios.rename("ratios").reset_index(), on=run).merge(_beside(path), on=_RUN)
    drawn = [_bootstrap(np.asarray(values), seed=seed) for values in table["ratios"]]
    tails = [_tails(medians) for medians in drawn]
    return table.assign(
        ratio=[float(np.median(values)) for values in table["ratios"]],
        low=[low for low, _ in tails],
        high=[high for _, high in tails],
        drawn=drawn,
    ).drop(columns="ratios")


def _beside(path: str | Path) -> pd.DataFrame:
    """Return what is known of a side's runs beside their times."""
    rows = load(path)
    rows = rows[rows["arm"] == "strategy"]
    configs = [json.loads(text) for text in rows["config_json"]]
    return rows[[*_RUN, *_BESIDE]].assign(
        scored=[json.dumps([config.get(name) for name in _SCORED], sort_keys=True) for config in configs],
        settings=[
            {"strategy": name} | _flat(config.get("strategy", {}), "")
            for name, config in zip(rows["strategy"], configs, strict=True)
        ],
    )


def _flat(node: object, key: str) -> dict[str, str]:
    """Return the values of a configuration by their full keys."""
    if not isinstance(node, dict):
        return {key: json.dumps(node)}
    return {name: value for part, inner in node.items() for name, value in _flat(inner, f"{key}.{part}").items()}


def _bootstrap(ratios: NDArray[np.float64], *, seed: int) -> NDArray[np.float64]:
    drawn = np.random.default_rng(seed).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    return np.median(ratios[drawn], axis=1)


def _tails(values: NDArray[np.float64]) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
