"""Parts compose: a cover of all pairs here, every combination under `make matrix`."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from kvbench.compositions import refusal
from tests.support import matrix

COVER = matrix.pairwise()


def label(choice: matrix.Choice) -> str:
    """Return a readable name of a combination."""
    return "-".join(choice[part] for part in matrix.PARTS)


def test_the_cover_holds_every_pair() -> None:
    held = set().union(*map(matrix.pairs, COVER))
    for one, other in combinations(matrix.PARTS, 2):
        for first, second in product(matrix.choices(one), matrix.choices(other)):
            assert frozenset([(one, first), (other, second)]) in held
    assert len(COVER) < len(matrix.everything()) / 10


@pytest.mark.parametrize("choice", COVER, ids=label)
def test_a_combination_runs_as_it_says_or_says_why_not(choice: matrix.Choice) -> None:
    matrix.keeps_its_word(choice)


def test_most_of_what_is_legal_runs() -> None:
    legal = [choice for choice in COVER if refusal(matrix.whole(choice)) is None]
    runs = [choice for choice in legal if matrix.unsupported(choice) is None]
    assert len(runs) > 0.7 * len(legal)
    assert len(legal) > len(COVER) / 2
