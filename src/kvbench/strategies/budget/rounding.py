"""Whole numbers that add up exactly, and hold what is protected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

from kvbench.cache.plan import LayerPlan


def apportion(weights: Sequence[Fraction], total: int) -> list[int]:
    """Return whole numbers in proportion to weights that add up to a total, by largest remainder.

    Args:
        weights: at least 0; if all are 0 they count as equal.
        total: at least 0; where remainders tie, the earlier one is rounded up.
    """
    if sum(weights) == 0:
        weights = [Fraction(1)] * len(weights)
    whole = sum(weights)
    shares = [weight * total / whole for weight in weights]
    counts = [int(share) for share in shares]
    order = sorted(range(len(shares)), key=lambda index: counts[index] - shares[index])
    for index in order[: total - sum(counts)]:
        counts[index] += 1
    return counts


def apportion_at_least(weights: Sequence[Fraction], total: int, least: int) -> list[int]:
    """Return whole numbers in proportion to weights that add up to a total, none of them below `least`."""
    raised: set[int] = set()
    while True:
        free = [index for index in range(len(weights)) if index not in raised]
        parts = apportion([weights[index] for index in free], total - least * len(raised))
        counts = dict.fromkeys(raised, least) | dict(zip(free, parts, strict=True))
        low = {index for index in free if counts[index] < least}
        if not low:
            return [counts[index] for index in range(len(weights))]
        raised |= low


def least_budget(plan: LayerPlan, most: int) -> int:
    """Return the smallest budget of a layer that holds what it protects, or `most` if that is smaller."""
    reserved, selector = plan.num_reserved, plan.selector
    for count in range(1, most - reserved):
        if selector.num_sink + selector.recent(count) <= count:
            return count + reserved
    return most


def spread(counts: Sequence[int], most: int) -> list[int]:
    """Return counts of which none is above the most there can be, with the excess spread evenly over the others.

    Args:
        counts: that together are no more than `most` each; what cannot be divided goes to the earlier ones.
        most: there can be.
    """
    capped = [min(count, most) for count in counts]
    excess = sum(counts) - sum(capped)
    while excess > 0:
        room = [index for index, count in enumerate(capped) if count < most]
        assert room, "more was given out than there can be"
        each = min(excess // len(room), min(most - capped[index] for index in room))
        given = room if each > 0 else room[:excess]
        for index in given:
            capped[index] += max(1, each)
        excess -= max(1, each) * len(given)
    return capped


def largest(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest number from 0 to `most` that fits, given that smaller ones do, too; 0 if none does."""
    fit, above = 0, most + 1
    while above - fit > 1:
        middle = (fit + above) // 2
        fit, above = (middle, above) if fits(middle) else (fit, middle)
    return fit
