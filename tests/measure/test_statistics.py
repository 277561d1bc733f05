"""Statistics against numbers worked by hand, and an interval against the exact distribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import comb

import numpy as np
import pytest

from kvbench.measure import statistics
from kvbench.measure.roofline import Regime
from kvbench.measure.samples import PairedSamples, Sample
from kvbench.measure.settings import Limits
from kvbench.measure.statistics import (
    Evidence,
    Interval,
    Statistic,
    Verdict,
    bootstrap_median,
    dirty_share,
    judge,
    kept_ms,
    latency,
    rate_spread,
    ratio_interval,
    round_ratios,
    weigh,
)
from tests.measure.fake_device import MS, FakeArm, FakeDevice, FakeHostClock, FakeQueueClock, default_settings, run
from tests.mutants import measure_statistics as mutants

LIMITS = Limits(half_width=0.02, aa_limit=0.02, min_rounds=10)


def block(arm: str, number: int, times_ms: Sequence[float], *, order: int = 0, is_clean: bool = True) -> list[Sample]:
    """Return the samples of one block; its wall clock is the time in ms."""
    return [
        Sample(
            arm=arm,
            round=number,
            block=order,
            index_in_block=index,
            wall_ns=round(ms * 1e6),
            event_ms=None,
            is_clean=is_clean,
        )
        for index, ms in enumerate(times_ms)
    ]


SAMPLES = [
    *block("baseline", 0, [90, 10, 10, 30], order=0),
    *block("h2o", 0, [1, 99, 99, 99], order=1, is_clean=False),
    *block("h2o", 0, [90, 4, 20, 6], order=2),
    *block("h2o", 1, [90, 10, 40, 10], order=3),
    *block("baseline", 1, [90, 20, 20, 80], order=4),
    *block("baseline", 2, [90, 10, 10, 10], order=5),
    *block("h2o", 2, [90, 10, 10, 10], order=6, is_clean=False),
]


def on_a_device(samples: Sequence[Sample]) -> list[Sample]:
    """Return the same steps as a device's clock would time them, launched in no time."""
    return [replace(sample, event_ms=sample.ms, wall_ns=1000) for sample in samples]


def check_kept(kept: Callable[..., dict[int, list[float]]]) -> None:
    """The first step and disturbed blocks do not count, and a device's clock is the one that does."""
    assert kept(SAMPLES, "h2o", clean_only=True) == {0: [4, 20, 6], 1: [10, 40, 10]}
    assert kept(on_a_device(SAMPLES), "h2o", clean_only=True) == {0: [4, 20, 6], 1: [10, 40, 10]}
    assert kept(SAMPLES, "h2o", clean_only=False) == {0: [99, 99, 99, 4, 20, 6], 1: [10, 40, 10], 2: [10, 10, 10]}


def test_only_settled_steps_of_clean_blocks_count() -> None:
    check_kept(kept_ms)


@pytest.mark.parametrize("mutant", mutants.KEPT)
def test_oracle_catches_steps_that_must_not_count(mutant: Callable[..., dict[int, list[float]]]) -> None:
    with pytest.raises(AssertionError):
        check_kept(mutant)


def test_the_only_step_of_a_block_counts() -> None:
    assert kept_ms(block("baseline", 0, [70]), "baseline", clean_only=True) == {0: [70]}


def check_ratios(ratios: Callable[[Sequence[Sample], str, str, Statistic], list[float]]) -> None:
    """Medians 6/10 and 10/20, means 10/(50/3) and 20/40; the third round has no clean block of the strategy."""
    assert ratios(SAMPLES, "h2o", "baseline", "median") == pytest.approx([0.6, 0.5])
    assert ratios(SAMPLES, "h2o", "baseline", "mean") == pytest.approx([0.6, 0.5])
    periodic = [*block("baseline", 0, [9, 2, 2, 2]), *block("h2o", 0, [9, 1, 1, 10], order=1)]
    assert ratios(periodic, "h2o", "baseline", "median") == [0.5]
    assert ratios(periodic, "h2o", "baseline", "mean") == [2.0]


def test_a_round_compares_its_own_blocks() -> None:
    check_ratios(round_ratios)


@pytest.mark.parametrize("mutant", mutants.RATIOS)
def test_oracle_catches_ratios_of_the_wrong_things(
    mutant: Callable[[Sequence[Sample], str, str, Statistic], list[float]],
) -> None:
    with pytest.raises(AssertionError):
        check_ratios(mutant)


def exact_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the percentile interval of the bootstrap's median from its distribution, for an odd number of values.

    The median of n draws is at most the k-th smallest value if more than half of the draws are.
    """
    num = len(values)
    ranked = sorted(values)

    def at_most(rank: int) -> float:
        share = rank / num
        return sum(comb(num, hits) * share**hits * (1 - share) ** (num - hits) for hits in range(num // 2 + 1, num + 1))

    low = next(value for rank, value in enumerate(ranked, 1) if at_most(rank) >= 0.025)
    high = next(value for rank, value in enumerate(ranked, 1) if at_most(rank) >= 0.975)
    return low, high


def check_bootstrap(bootstrap: Callable[[Sequence[float]], Interval]) -> None:
    """The ends are those order statistics that the exact distribution gives."""
    for num in (11, 21, 41):
        values = [float(value) for value in np.random.default_rng(num).permutation(num) ** 2]
        found = bootstrap(values)
        assert (found.low, found.high) == exact_interval(values)
        assert found.value == sorted(values)[num // 2]


def test_the_interval_is_that_of_the_exact_distribution() -> None:
    check_bootstrap(bootstrap_median)


@pytest.mark.parametrize("mutant", mutants.BOOTSTRAPS)
def test_oracle_catches_another_bootstrap(mutant: Callable[[Sequence[float]], Interval]) -> None:
    with pytest.raises(AssertionError):
        check_bootstrap(mutant)


def test_an_interval_is_the_same_every_time() -> None:
    values = [1.0, 1.1, 0.9, 1.05, 0.97]
    assert bootstrap_median(values) == bootstrap_median(values)


def test_equal_rounds_have_no_width() -> None:
    assert bootstrap_median([0.5] * 10) == Interval(value=0.5, low=0.5, high=0.5)


def test_one_round_has_no_interval() -> None:
    assert ratio_interval(SAMPLES[:12], "h2o", "baseline", "median") is None


def evidence(**changes: Interval | float | None) -> Evidence:
    """Return a clear win: 0.8 of the time, the baseline half a percent from itself."""
    clear = Evidence(
        ratio=Interval(value=0.8, low=0.79, high=0.81),
        aa=Interval(value=1.005, low=0.99, high=1.01),
        rounds=10,
        dirty_share=0.0,
        rate_spread=0.0,
    )
    return replace(clear, **changes)  # type: ignore[arg-type]


def interval(value: float, half_width: float) -> Interval:
    """Return a symmetric interval."""
    return Interval(value=value, low=value - half_width, high=value + half_width)


VERDICTS: list[tuple[Evidence, Regime, Verdict, str]] = [
    (evidence(), "memory_bound", "faster", "excludes 1"),
    (evidence(), "launch_bound", "faster", "excludes 1"),
    (evidence(ratio=interval(1.3, 0.05)), "memory_bound", "slower", "excludes 1"),
    (evidence(), "overhead_bound", "none", "processor's cache"),
    (evidence(aa=interval(1.021, 0.01)), "memory_bound", "inconclusive", "baseline lay 2.1% from itself"),
    (evidence(aa=interval(0.979, 0.01)), "memory_bound", "inconclusive", "baseline lay 2.1% from itself"),
    (evidence(ratio=interval(0.986, 0.005)), "memory_bound", "no_difference", "inside the noise"),  # under 3 x 0.5%
    (evidence(ratio=interval(0.984, 0.005)), "memory_bound", "faster", "excludes 1"),  # over it
    (evidence(ratio=interval(0.99, 0.015)), "memory_bound", "no_difference", "inside the noise"),
    (evidence(ratio=interval(0.98, 0.05)), "memory_bound", "inconclusive", "+-5.0% wide"),
    (evidence(rounds=9), "memory_bound", "inconclusive", "9 usable rounds of at least 10"),
    (evidence(ratio=None, rounds=0), "memory_bound", "inconclusive", "0 usable rounds"),
    (evidence(aa=None), "memory_bound", "inconclusive", "usable rounds"),
    (evidence(dirty_share=0.51), "memory_bound", "inconclusive", "noisy machine: 51%"),
    (evidence(dirty_share=0.49), "memory_bound", "faster", "excludes 1"),
    (evidence(rate_spread=0.04), "memory_bound", "inconclusive", "clocks lay 4.0% apart"),
]


def check_verdicts(judging: Callable[[Evidence, Regime, Limits], tuple[Verdict, str]]) -> None:
    """Each case gives its verdict."""
    for case, regime, verdict, _ in VERDICTS:
        assert judging(case, regime, LIMITS)[0] == verdict, case


def test_nothing_is_claimed_that_the_noise_could_have_made() -> None:
    check_verdicts(judge)


@pytest.mark.parametrize(("case", "regime", "verdict", "reason"), VERDICTS)
def test_a_verdict_says_why(case: Evidence, regime: Regime, verdict: Verdict, reason: str) -> None:
    assert reason in judge(case, regime, LIMITS)[1]


@pytest.mark.parametrize("mutant", mutants.JUDGES)
def test_oracle_catches_a_rash_judge(mutant: Callable[[Evidence, Regime, Limits], tuple[Verdict, str]]) -> None:
    with pytest.raises(AssertionError):
        check_verdicts(mutant)


def test_the_evidence_is_that_of_the_arm() -> None:
    rounds = range(10)
    samples = [
        sample
        for number in rounds
        for order, (arm, ms) in enumerate({"baseline": 10, "h2o": 8, "baseline_again": 11}.items())
        for sample in block(arm, number, [99, ms, ms], order=3 * number + order)
    ]
    paired = PairedSamples(
        samples=tuple(samples), baseline="baseline", warmup_s=0.0, rates_mhz={}, steps_behind={}, energy={}
    )
    assert weigh(paired, "h2o", "median") == Evidence(
        ratio=Interval(value=0.8, low=0.8, high=0.8),
        aa=Interval(value=1.1, low=1.1, high=1.1),
        rounds=10,
        dirty_share=0.0,
        rate_spread=0.0,
    )


def test_percentiles_are_those_of_the_kept_steps() -> None:
    found = latency([*block("h2o", 0, [999, *range(1, 102)])], "h2o")
    assert found is not None
    assert (found.num_steps, found.p50_ms, found.p90_ms, found.p95_ms, found.p99_ms) == (101, 51, 91, 96, 100)
    assert (found.max_ms, found.mean_ms) == (101, 51)


def test_percentiles_leave_disturbed_blocks_out_unless_asked() -> None:
    clean, every = latency(SAMPLES, "h2o"), latency(SAMPLES, "h2o", clean_only=False)
    assert clean is not None
    assert every is not None
    assert (clean.max_ms, every.max_ms) == (40, 99)
    assert latency(SAMPLES, "tova") is None


def test_the_dirty_share_counts_blocks() -> None:
    assert dirty_share(SAMPLES) == pytest.approx(2 / 7)
    assert dirty_share([]) == 0


def test_the_spread_of_rates_is_between_arms() -> None:
    assert rate_spread({"baseline": [1000, 1000, 1900], "h2o": [1100]}) == pytest.approx(0.1)
    assert rate_spread({}) == 0


def test_a_launch_bound_step_has_a_device_that_is_hardly_behind() -> None:
    paired = PairedSamples(
        samples=(), baseline=None, warmup_s=0.0, rates_mhz={}, steps_behind={"baseline": 0.05, "h2o": 1.0}, energy={}
    )
    assert [statistics.is_launch_bound(paired, arm) for arm in ("baseline", "h2o", "tova")] == [True, False, False]


@pytest.mark.parametrize(("launch_ms", "is_bound"), [(1, False), (40, True)])
def test_a_device_that_waits_for_launches_is_launch_bound(launch_ms: int, is_bound: bool) -> None:
    device = FakeDevice(launch_ns=launch_ms * MS)
    arms = {"baseline": FakeArm(device, lambda index: 2 * MS)}
    result = run(arms, FakeQueueClock(device), default_settings(max_rounds=10), steps=32)
    assert statistics.is_launch_bound(result, "baseline") == is_bound


def test_a_processor_is_never_launch_bound() -> None:
    device = FakeDevice()
    arms = {"baseline": FakeArm(device, lambda index: MS, on_host=True)}
    result = run(arms, FakeHostClock(device), default_settings(max_rounds=10))
    assert result.steps_behind == {}
    assert not statistics.is_launch_bound(result, "baseline")
