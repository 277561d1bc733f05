"""The 3-gram is a distribution, and the one worked out by hand."""

from __future__ import annotations

import math

import pytest

from kvbench.quality.ngram import KneserNey

TEXT = [0, 1, 2, 0, 1, 3, 0, 1, 2, 2, 3, 0, 1, 2] * 3


def test_probabilities_sum_to_one_in_seen_and_unseen_contexts() -> None:
    model = KneserNey(TEXT, 5)
    for context in [(0, 1), (1, 2), (4, 4), (2, 4)]:
        assert sum(model._probability((*context, token)) for token in range(5)) == pytest.approx(1)


def test_probability_of_a_pair_seen_twice_is_the_one_worked_out_by_hand() -> None:
    # "0 1 2 0 1 2": trigrams 012 x2, 120, 201: n1 = 2, n2 = 1, discount 2/4 = 0.5. Bigrams by continuation: 12, 20,
    # 01 once each: discount 3/3 = 1. Unigrams by continuation: 2, 0, 1 once each: discount 1, so P1 = 1/4 uniform
    # over a vocabulary of 4. P2(2|1) = (1-1)/1 + 1*1*1/4 = 1/4. P3(2|01) = (2-0.5)/2 + 0.5*1/2*1/4 = 0.8125.
    model = KneserNey([0, 1, 2, 0, 1, 2], 4)
    assert model._probability((0, 1, 2)) == pytest.approx(0.8125)
    assert model.nll_nats([0, 1, 2]) == pytest.approx(-math.log(0.8125))


def test_text_like_the_training_text_is_likelier_than_shuffled_text() -> None:
    model = KneserNey(TEXT, 5)
    assert model.nll_nats(TEXT) < model.nll_nats(sorted(TEXT)) < math.log(5) * 2
