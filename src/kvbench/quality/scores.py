"""From scored samples to a difference, its interval and what may be said of it: arithmetic on records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kvbench.measure.statistics import CONFIDENCE, RESAMPLES, SEED, Interval
from kvbench.quality.references import Reference

ScoreVerdict = Literal["better", "worse", "no_difference", "too_few", "at_chance", "off_reference", "none"]

MIN_SAMPLES = 20  # under which nothing is claimed
FAR = 3.0  # standard errors from a reference that are no chance any more

Scores = Mapping[tuple[str, int], float]  # task and number of a sample -> its score


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What an arm's scores say beside the baseline's.

    Args:
        delta: the arm's score less the baseline's; None where nothing may be said of it.
        verdict: what may be said.
        reason: why.
    """

    delta: Interval | None
    verdict: ScoreVerdict
    reason: str


def of_samples(rows: Sequence[Mapping[str, Any]], column: str) -> Scores:
    """Return the mean of a column over the turns of each sample; nothing of samples without a value.

    Args:
        rows: answers of one arm, with task and number of their sample.
        column: of numbers.
    """
    turns: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        if row[column] is not None:
            turns.setdefault((row["task"], row["number"]), []).append(row[column])
    return {sample: sum(values) / len(values) for sample, values in turns.items()}


def mean_score(scores: Scores) -> Interval:
    """Return the mean over tasks of their samples' mean scores, with the interval of its bootstrap."""
    return _bootstrap([list(values.values()) for values in _by_task(scores).values()])


def score_delta(mine: Scores, full: Scores) -> Interval:
    """Return how far an arm's score is above the baseline's; samples are drawn again in pairs, within their tasks.

    Args:
        mine: of the arm.
        full: of the baseline, for the same samples.
    """
    if mine.keys() != full.keys():
        raise ValueError("the arms were not asked the same: scores are compared sample by sample.")
    return _bootstrap(
        [[score - full[task, number] for number, score in values.items()] for task, values in _by_task(mine).items()]
    )


def length_ratio(mine: Scores, full: Scores) -> Interval:
    """Return how many times as long as the baseline's an arm's answers are, all together, samples drawn in pairs.

    Args:
        mine: tokens of each of the arm's answers.
        full: of the baseline's, for the same samples; at least one of them is not empty.
    """
    pairs = np.array([[length, full[sample]] for sample, length in sorted(mine.items())], dtype=float)
    drawn = pairs[np.random.default_rng(SEED).integers(len(pairs), size=(RESAMPLES, len(pairs)))].sum(axis=1)
    drawn = drawn[drawn[:, 1] > 0]
    total = pairs.sum(axis=0)
    return _interval(total[0] / total[1], drawn[:, 0] / drawn[:, 1])


def judge_scores(mine: Scores, full: Scores, *, chance: float, reference: Reference | None) -> Scored:
    """Return what may be said of an arm's scores, and why.

    Args:
        mine: of the arm.
        full: of the baseline, for the same samples.
        chance: mean score of whoever guesses.
        reference: score that the full cache is known to reach; None where nobody knows.
    """
    base = mean_score(full)
    if base.low <= chance:
        reason = f"the full cache scores {base.value:.1%}, which guessing may reach ({chance:.1%}): nothing can be lost"
        return Scored(delta=None, verdict="at_chance", reason=reason)
    if reference is not None and _is_far(base.value, len(full), reference):
        reason = (
            f"the full cache scores {base.value:.1%} of {len(full)} samples, and {reference.source} says "
            f"{reference.score:.1%}: another model, text or template was asked; workload.reference=none lets it be"
        )
        return Scored(delta=None, verdict="off_reference", reason=reason)
    delta = score_delta(mine, full)
    if len(mine) < MIN_SAMPLES:
        reason = f"{len(mine)} samples of at least {MIN_SAMPLES}; raise workload.samples"
        return Scored(delta=delta, verdict="too_few", reason=reason)
    if delta.low <= 0 <= delta.high:
        return Scored(delta=delta, verdict="no_difference", reason="inside the noise")
    return Scored(delta=delta, verdict="better" if delta.value > 0 else "worse", reason="the interval excludes 0")


def _is_far(score: float, samples: int, reference: Reference) -> bool:
    """Return whether two means of values from 0 to 1 are further apart than chance puts them.

    No such values vary more than right and wrong answers of their mean do, whose standard error is taken.
    """
    others = reference.samples or samples
    mean = (score * samples + reference.score * others) / (samples + others)
    error = np.sqrt(mean * (1 - mean) * (1 / samples + 1 / others))
    return bool(abs(score - reference.score) > FAR * error)


def _by_task(scores: Scores) -> dict[str, dict[int, float]]:
    tasks: dict[str, dict[int, float]] = {}
    for (task, number), score in sorted(scores.items()):
        tasks.setdefault(task, {})[number] = score
    return tasks


def _bootstrap(tasks: Sequence[Sequence[float]]) -> Interval:
    """Return the mean over tasks of their means, and its percentile interval; each task's samples drawn again."""
    rng, drawn = np.random.default_rng(SEED), np.zeros(RESAMPLES)
    samples: list[NDArray[np.float64]] = [np.asarray(values, dtype=float) for values in tasks]
    for values in samples:
        drawn += values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1) / len(samples)
    return _interval(np.mean([values.mean() for values in samples]), drawn)


def _interval(value: np.floating[Any], drawn: NDArray[np.float64]) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value=float(value), low=float(low), high=float(high))
