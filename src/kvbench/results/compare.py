"""Runs against each other, by what each made of the baseline beside it.

Two runs are two processes, and what lies between their times is the machine's mood as much as the strategies'. Each
was timed block by block beside its own baseline, though, so those ratios are compared, not the times.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvbench.results.labels import labels
from kvbench.results.load import load

RESAMPLES = 2000
CONFIDENCE = 0.95
_SAME = ["model", "weights", "workload", "batch_size", "prompt_tokens", "query_aware", "device_name", "phase"]


def compare(a: str | Path, b: str | Path) -> pd.DataFrame:
    """Return how the runs of one folder did against those of another, recomputed from the timed steps.

    Every run of `a` meets every run of `b` with the same model, workload, lengths and device.

    Args:
        a: folder of a run or of many.
        b: folder of a run or of many.

    Returns:
        One row per pair and phase: the sides' names, each side's time over its own baseline's with its 95% interval
        (`ratio_a`, `low_a`, `high_a`, ...), and `ratio`, `low`, `high` of a's over b's: below 1, a is faster.
    """
    pairs = _side(a, seed=0).merge(_side(b, seed=1), on=_SAME, suffixes=("_a", "_b"))
    if pairs.empty:
        raise ValueError(f"no run below {a} has the {', '.join(_SAME[:-1])} of one below {b}: nothing can be compared.")
    tails = [_tails(a / b) for a, b in zip(pairs["drawn_a"], pairs["drawn_b"], strict=True)]
    return pairs.assign(
        ratio=pairs["ratio_a"] / pairs["ratio_b"], low=[low for low, _ in tails], high=[high for _, high in tails]
    ).drop(columns=["drawn_a", "drawn_b"])


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
    table = known.merge(ratios.rename("ratios").reset_index(), on=run)
    drawn = [_bootstrap(np.asarray(values), seed=seed) for values in table["ratios"]]
    tails = [_tails(medians) for medians in drawn]
    return table.assign(
        ratio=[float(np.median(values)) for values in table["ratios"]],
        low=[low for low, _ in tails],
        high=[high for _, high in tails],
        drawn=drawn,
    ).drop(columns="ratios")


def _bootstrap(ratios: NDArray[np.float64], *, seed: int) -> NDArray[np.float64]:
    drawn = np.random.default_rng(seed).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    return np.median(ratios[drawn], axis=1)


def _tails(values: NDArray[np.float64]) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
