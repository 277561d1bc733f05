"""Ratios that are not the protocol's."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from kvbench.results.compare import compare, round_ratios
from kvbench.results.load import load


def with_first_steps(steps: pd.DataFrame) -> pd.Series:
    """Count the first step of a block, which finds its caches cold."""
    return round_ratios(steps.assign(index_in_block=steps["index_in_block"] + 1))


def with_disturbed_blocks(steps: pd.DataFrame) -> pd.Series:
    """Count blocks that other processes disturbed."""
    return round_ratios(steps.assign(is_clean=True))


def always_the_median(steps: pd.DataFrame) -> pd.Series:
    """Overlook periodic work."""
    return round_ratios(steps.assign(statistic="median"))


def each_arm_by_its_own(steps: pd.DataFrame) -> pd.Series:
    """Take the mean of the strategy's blocks over the median of the baseline's."""
    found = round_ratios(steps)
    theirs = steps["arm"] == "baseline"
    kept = steps[theirs & (steps["index_in_block"] > 0) & steps["is_clean"]]
    blocks = kept.groupby(["sweep", "run_id", "phase", "round"])["wall_ns"]
    by_mean = steps.groupby(["sweep", "run_id"])["statistic"].first().eq("mean")
    skew = (blocks.mean() / blocks.median()).reindex(found.index)
    return found.mask(found.index.droplevel(["phase", "round"]).isin(by_mean.index[by_mean]), found * skew)


def upside_down(steps: pd.DataFrame) -> pd.Series:
    """Put the baseline above the line."""
    return 1 / round_ratios(steps)


def times_across_days(a: Path, b: Path) -> pd.DataFrame:
    """Compare times of two processes as if the machine were always the same."""
    found = compare(a, b)
    medians = [
        steps[(steps["arm"] == "strategy") & (steps["index_in_block"] > 0)]["wall_ns"].median()
        for steps in (load(a, steps=True), load(b, steps=True))
    ]
    return found.assign(ratio=medians[0] / medians[1])


def losses_of_any_tokens(a: Path, b: Path) -> pd.DataFrame:
    """Subtract losses whatever they are of."""
    found = compare(a, b)
    return found.assign(nll_difference=found["nll_nats_a"] - found["nll_nats_b"])


def bytes_upside_down(a: Path, b: Path) -> pd.DataFrame:
    """Put a's bytes below the line."""
    found = compare(a, b)
    return found.assign(kv_ratio=1 / found["kv_ratio"])


def baselines_bytes(a: Path, b: Path) -> pd.DataFrame:
    """Take the bytes of the full cache beside each side."""
    found = compare(a, b)
    ours, theirs = (rows[rows["arm"] == "baseline"]["kv_allocated_bytes"] for rows in (load(a), load(b)))
    return found.assign(kv_ratio=(ours / theirs.mask(theirs == 0)).to_numpy())


BESIDE = [losses_of_any_tokens, bytes_upside_down, baselines_bytes]
RATIOS = [with_first_steps, with_disturbed_blocks, always_the_median, each_arm_by_its_own, upside_down]
