"""Scores are averaged by task, compared sample by sample, and say nothing where nothing can be lost."""

from __future__ import annotations

import numpy as np
import pytest

from kvbench.quality.references import Reference
from kvbench.quality.scores import Scores, judge_scores, length_ratio, mean_score, score_delta


def scores(**tasks: list[float]) -> Scores:
    """Return scores of samples that are numbered through all tasks."""
    every = [(task, value) for task, values in tasks.items() for value in values]
    return {(task, number): value for number, (task, value) in enumerate(every)}


def test_a_task_counts_once_however_many_samples_it_has() -> None:
    found = mean_score(scores(few=[1.0], many=[0.0] * 9))
    assert found.value == 0.5
    assert mean_score(scores(one=[0.25, 0.75])).value == 0.5


def test_the_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.1, size=400)
    found = mean_score(scores(one=values.tolist()))
    wide = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - wide, abs=0.1 * wide)
    assert found.high == pytest.approx(values.mean() + wide, abs=0.1 * wide)


def test_tasks_are_drawn_again_within_themselves() -> None:
    found = mean_score(scores(low=[0.0] * 5, high=[1.0] * 5))
    assert (found.low, found.value, found.high) == (0.5, 0.5, 0.5)


def test_a_difference_is_of_pairs() -> None:
    full = np.random.default_rng(2).uniform(size=50)
    delta = score_delta(scores(one=(full - 0.01).tolist()), scores(one=full.tolist()))
    assert (delta.low, delta.value, delta.high) == pytest.approx((-0.01, -0.01, -0.01))


def test_arms_that_were_asked_otherwise_are_not_compared() -> None:
    with pytest.raises(ValueError, match="not asked the same"):
        score_delta(scores(one=[1.0, 1.0]), scores(one=[1.0]))


HALF = [1.0, 0.0] * 20


@pytest.mark.parametrize(
    ("mine", "full", "chance", "reference", "verdict", "has_delta"),
    [
        (HALF, HALF, 0.0, None, "no_difference", True),
        (HALF, [1.0] * 40, 0.0, None, "worse", True),
        ([1.0] * 40, HALF, 0.0, None, "better", True),
        ([1.0] * 39 + [0.0], [1.0] * 40, 0.0, None, "no_difference", True),
        ([0.0] * 40, [0.0] * 40, 0.0, None, "at_chance", False),
        (HALF, HALF, 0.5, None, "at_chance", False),
        (HALF, HALF, 0.0, (0.9, 0), "off_reference", False),
        (HALF, HALF, 0.0, (0.8, 0), "no_difference", True),  # 2.8 standard errors
        (HALF, HALF, 0.0, (0.8, 4000), "off_reference", False),  # 4.7
        ([1.0] * 40, [1.0] * 40, 0.0, (0.99, 4000), "no_difference", True),  # of 40, all may be right
        ([1.0] * 40, [1.0] * 40, 0.0, (0.6, 4000), "off_reference", False),
        ([0.0] * 10, [1.0] * 10, 0.0, None, "too_few", True),
    ],
)
def test_what_may_be_said(
    mine: list[float],
    full: list[float],
    chance: float,
    reference: tuple[float, int] | None,
    verdict: str,
    has_delta: bool,
) -> None:
    known = None if reference is None else Reference(score=reference[0], samples=reference[1], source="the paper")
    found = judge_scores(scores(one=mine), scores(one=full), chance=chance, reference=known)
    assert (found.verdict, found.delta is not None) == (verdict, has_delta)
    assert found.reason
    assert ("the paper says" in found.reason) == (verdict == "off_reference")


def test_lengths_are_compared_all_together_in_pairs() -> None:
    full = {("answers", number): float(number + 1) for number in range(40)}
    found = length_ratio({sample: 2 * length for sample, length in full.items()}, full)
    assert (found.low, found.value, found.high) == (2, 2, 2)
    mine = {sample: length + (30 if sample[1] % 2 else -0.5) for sample, length in full.items()}
    found = length_ratio(mine, full)
    assert found.value == pytest.approx(sum(mine.values()) / sum(full.values()))
    assert found.low < found.value < found.high
    assert (
        length_ratio({("answers", 0): 3.0, ("answers", 1): 0.0}, {("answers", 0): 2.0, ("answers", 1): 0.0}).value
        == 1.5
    )
