"""Broken statistics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from kvbench.measure.samples import Sample
from kvbench.measure.settings import Limits
from kvbench.measure.statistics import Evidence, Interval, Statistic, Verdict, round_ratios


def kept_with_the_first_step(samples: Iterable[Sample], arm: str, *, clean_only: bool) -> dict[int, list[float]]:
    """Keep the first step of each block."""
    rounds: dict[int, list[float]] = {}
    for sample in samples:
        if sample.arm == arm and (sample.is_clean or not clean_only):
            rounds.setdefault(sample.round, []).append(sample.ms)
    return rounds


def kept_with_disturbed_blocks(samples: Iterable[Sample], arm: str, *, clean_only: bool) -> dict[int, list[float]]:
    """Keep blocks that other processes disturbed."""
    rounds: dict[int, list[float]] = {}
    for sample in samples:
        if sample.arm == arm and sample.index_in_block > 0:
            rounds.setdefault(sample.round, []).append(sample.ms)
    return rounds


def kept_by_the_hosts_clock(samples: Iterable[Sample], arm: str, *, clean_only: bool) -> dict[int, list[float]]:
    """Use the time of launching where the device has a clock of its own."""
    rounds: dict[int, list[float]] = {}
    for sample in samples:
        if sample.arm == arm and (sample.is_clean or not clean_only) and sample.index_in_block > 0:
            rounds.setdefault(sample.round, []).append(sample.wall_ns / 1e6)
    return rounds


def ratio_of_medians(samples: Sequence[Sample], arm: str, baseline: str, statistic: Statistic) -> list[float]:
    """Pair nothing: compare all steps of one arm with all of the other, as often as there are rounds."""
    above, below = ([s.ms for s in samples if s.arm == name and s.index_in_block > 0] for name in (arm, baseline))
    rounds = len(round_ratios(samples, arm, baseline, statistic))
    return [float(np.median(above) / np.median(below))] * rounds


def always_median(samples: Sequence[Sample], arm: str, baseline: str, statistic: Statistic) -> list[float]:
    """Use the median even where work is periodic."""
    return round_ratios(samples, arm, baseline, "median")


def baseline_above(samples: Sequence[Sample], arm: str, baseline: str, statistic: Statistic) -> list[float]:
    """Divide the wrong way round."""
    return [1 / ratio for ratio in round_ratios(samples, arm, baseline, statistic)]


def bootstrap_of_the_mean(values: Sequence[float]) -> Interval:
    """Draw means instead of medians."""
    rounds = np.asarray(values)
    drawn = np.random.default_rng(0).integers(len(rounds), size=(2000, len(rounds)))
    low, high = np.quantile(rounds[drawn].mean(axis=1), [0.025, 0.975])
    return Interval(value=float(np.median(rounds)), low=float(low), high=float(high))


def bootstrap_as_if_each_round_were_many_steps(values: Sequence[float]) -> Interval:
    """Draw steps instead of rounds: seven times as much evidence as there is."""
    rounds = np.repeat(np.asarray(values), 7)
    drawn = np.random.default_rng(0).integers(len(rounds), size=(2000, len(rounds)))
    low, high = np.quantile(np.median(rounds[drawn], axis=1), [0.025, 0.975])
    return Interval(value=float(np.median(rounds)), low=float(low), high=float(high))


def judge_by_the_value_alone(evidence: Evidence, regime: str, limits: Limits) -> tuple[Verdict, str]:
    """Rank by the value."""
    assert evidence.ratio is not None
    return ("faster" if evidence.ratio.value < 1 else "slower"), ""


def judge_without_the_gate(evidence: Evidence, regime: str, limits: Limits) -> tuple[Verdict, str]:
    """Trust any interval that excludes 1."""
    if regime == "overhead_bound":
        return "none", ""
    if evidence.ratio is None:
        return "inconclusive", ""
    if evidence.ratio.low <= 1 <= evidence.ratio.high:
        return ("no_difference" if evidence.ratio.half_width <= limits.half_width else "inconclusive"), ""
    return ("faster" if evidence.ratio.value < 1 else "slower"), ""


KEPT = (kept_with_the_first_step, kept_with_disturbed_blocks, kept_by_the_hosts_clock)
RATIOS = (ratio_of_medians, always_median, baseline_above)
BOOTSTRAPS = (bootstrap_of_the_mean, bootstrap_as_if_each_round_were_many_steps)
JUDGES = (judge_by_the_value_alone, judge_without_the_gate)
