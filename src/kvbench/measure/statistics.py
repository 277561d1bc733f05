"""From timed steps to a ratio, its interval and a verdict: arithmetic on records, so that parquet says the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kvbench.measure.roofline import Regime
from kvbench.measure.samples import PairedSamples, Sample, again
from kvbench.measure.settings import Limits

Statistic = Literal["median", "mean"]
Verdict = Literal["faster", "slower", "no_difference", "inconclusive", "none"]

RESAMPLES = 2000
SEED = 0  # the same records always give the same interval
CONFIDENCE = 0.95
NOISY_SHARE = 0.5  # of blocks disturbed, above which nothing is claimed
GAP_FACTOR = 3  # an effect counts from so many times the gap between the baseline and itself
RATE_SPREAD = 0.03  # between the arms' device clocks, above which nothing is claimed
LAUNCH_BOUND_STEPS = 0.1  # that a device which never starves is behind the host at the end of a block, at least


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value and its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2


@dataclass(frozen=True, kw_only=True)
class Latency:
    """How long an arm's steps took [ms], the first of each block left out."""

    num_steps: int
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    mean_ms: float


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What an arm's times say beside the baseline's.

    Args:
        ratio: time of the arm over time of the baseline; None under two usable rounds.
        aa: the same for the baseline and itself.
        rounds: with a clean block of both.
        dirty_share: of the comparison's blocks.
        rate_spread: how far the arms' median device clocks lie apart, as a share of the slowest.
    """

    ratio: Interval | None
    aa: Interval | None
    rounds: int
    dirty_share: float
    rate_spread: float


def kept_ms(samples: Iterable[Sample], arm: str, *, clean_only: bool) -> dict[int, list[float]]:
    """Return the times of an arm's steps per round, without the first of each block longer than one.

    Args:
        samples: of the comparison.
        arm: whose.
        clean_only: whether to leave disturbed blocks out.
    """
    blocks: defaultdict[tuple[int, int], list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.arm == arm and (sample.is_clean or not clean_only):
            blocks[sample.round, sample.block].append(sample)
    rounds: defaultdict[int, list[float]] = defaultdict(list)
    for (number, _), block in blocks.items():
        rounds[number] += [sample.ms for sample in block if sample.index_in_block > 0 or len(block) == 1]
    return dict(rounds)


def round_ratios(samples: Sequence[Sample], arm: str, baseline: str, statistic: Statistic) -> list[float]:
    """Return the arm's clean block over the baseline's, for each round that has both.

    Args:
        samples: of the comparison.
        arm: above the line.
        baseline: below it.
        statistic: of a block's steps.
    """
    centre = np.median if statistic == "median" else np.mean
    above, below = (kept_ms(samples, name, clean_only=True) for name in (arm, baseline))
    return [float(centre(above[number]) / centre(below[number])) for number in sorted(above.keys() & below.keys())]


def ratio_interval(samples: Sequence[Sample], arm: str, baseline: str, statistic: Statistic) -> Interval | None:
    """Return the median of the rounds' ratios and its interval; None under two usable rounds."""
    ratios = round_ratios(samples, arm, baseline, statistic)
    return bootstrap_median(ratios) if len(ratios) >= 2 else None


def bootstrap_median(values: Sequence[float]) -> Interval:
    """Return the median and the percentile interval of its bootstrap.

    Rounds are drawn again, never steps: the steps of a block are not independent.

    Args:
        values: one per round.
    """
    rounds = np.asarray(values, dtype=float)
    drawn = np.random.default_rng(SEED).integers(len(rounds), size=(RESAMPLES, len(rounds)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.median(rounds[drawn], axis=1), [tail, 1 - tail])
    return Interval(value=float(np.median(rounds)), low=float(low), high=float(high))


def latency(samples: Iterable[Sample], arm: str, *, clean_only: bool = True) -> Latency | None:
    """Return an arm's percentiles and its mean, or None where no block counts.

    Args:
        samples: of the comparison.
        arm: whose.
        clean_only: whether to leave disturbed blocks out.
    """
    times = [ms for block in kept_ms(samples, arm, clean_only=clean_only).values() for ms in block]
    if not times:
        return None
    p50, p90, p95, p99 = (float(value) for value in np.percentile(times, [50, 90, 95, 99]))
    return Latency(
        num_steps=len(times),
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        max_ms=max(times),
        mean_ms=float(np.mean(times)),
    )


def dirty_share(samples: Iterable[Sample]) -> float:
    """Return the share of blocks that other processes disturbed."""
    is_clean = {sample.block: sample.is_clean for sample in samples}
    return 1 - sum(is_clean.values()) / len(is_clean) if is_clean else 0.0


def is_launch_bound(paired: PairedSamples, arm: str) -> bool:
    """Return whether the device waited for the host to launch an arm's steps; False without a device's clock."""
    return arm in paired.steps_behind and paired.steps_behind[arm] < LAUNCH_BOUND_STEPS


def rate_spread(rates_mhz: Mapping[str, Sequence[int]]) -> float:
    """Return how far the arms' median device clocks lie apart, as a share of the slowest; 0 where nobody says."""
    middles = [float(np.median(rates)) for rates in rates_mhz.values() if rates]
    return max(middles) / min(middles) - 1 if middles else 0.0


def weigh(paired: PairedSamples, arm: str, statistic: Statistic) -> Evidence:
    """Return what an arm's times say beside the baseline's.

    Args:
        paired: the comparison.
        arm: one of its arms, not the baseline.
        statistic: "mean" for an arm with periodic work, over blocks of at least a period.
    """
    assert paired.baseline is not None
    return Evidence(
        ratio=ratio_interval(paired.samples, arm, paired.baseline, statistic),
        aa=ratio_interval(paired.samples, again(paired.baseline), paired.baseline, statistic),
        rounds=len(round_ratios(paired.samples, arm, paired.baseline, statistic)),
        dirty_share=dirty_share(paired.samples),
        rate_spread=rate_spread(paired.rates_mhz),
    )


def judge(evidence: Evidence, regime: Regime, limits: Limits) -> tuple[Verdict, str]:
    """Return what may be claimed, and why.

    Args:
        evidence: of an arm beside the baseline.
        regime: what the baseline's steps are bound by.
        limits: what must be reached.
    """
    if regime == "overhead_bound":
        return "none", "the cache and the weights fit in the processor's cache"
    void = _void(evidence, limits)
    if void is not None or evidence.ratio is None or evidence.aa is None:
        return "inconclusive", void or "no usable rounds"
    ratio, gap = evidence.ratio, abs(evidence.aa.value - 1)
    if not ratio.low <= 1 <= ratio.high and abs(ratio.value - 1) >= GAP_FACTOR * gap:
        return ("faster" if ratio.value < 1 else "slower"), "the interval excludes 1 and the effect the noise"
    if ratio.half_width <= limits.half_width:
        return "no_difference", "inside the noise"
    return "inconclusive", f"the interval is +-{ratio.half_width:.1%} wide, at most {limits.half_width:.0%} is allowed"


def _void(evidence: Evidence, limits: Limits) -> str | None:
    """Return why nothing can be claimed, whatever the ratio."""
    if evidence.dirty_share > NOISY_SHARE:
        return f"noisy machine: {evidence.dirty_share:.0%} of the blocks were disturbed"
    if evidence.rounds < limits.min_rounds:
        return f"{evidence.rounds} usable rounds of at least {limits.min_rounds}"
    if evidence.rate_spread > RATE_SPREAD:
        return f"void: the device's clocks lay {evidence.rate_spread:.1%} apart"
    gap = abs(evidence.aa.value - 1) if evidence.aa is not None else 0.0
    if gap > limits.aa_limit:
        return f"void: the baseline lay {gap:.1%} from itself, at most {limits.aa_limit:.0%} is allowed"
    return None
