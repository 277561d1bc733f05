"""Scorers of single entries that each get one thing wrong."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from kvbench.cache.views import PromptView
from kvbench.strategies.selection import expected_attention as expected
from kvbench.strategies.selection import key_difference
from kvbench.strategies.selection.expected_attention import ExpectedAttention
from kvbench.strategies.selection.key_difference import KeyDifference
from kvbench.strategies.selection.lag import LagRank
from tests.mutants.core_mutant import Check, Mutant
from tests.support import expectation, scorers

unlike_the_mean, key_prompt = key_difference._unlike_the_mean, KeyDifference.prompt
unevenness, lag_prompt = LagRank._unevenness, LagRank.prompt
statistics, mean_rotation = expected.query_statistics, expected.mean_rotation
expected_prompt = ExpectedAttention.prompt


def broken(name: str, owner: object, attribute: str, instead: object, *killed_by: Check) -> Mutant:
    """Return a mutant of one patch."""
    return Mutant(name=name, patches=((owner, attribute, instead),), killed_by=killed_by)


def loops(name: str, made: scorers.Loops, *overrides: str, model: str = "llama_gqa") -> partial[None]:
    """Return the oracle of scores by plain loops."""
    return partial(scorers.scores_equal_loops, name, model, made, overrides)


# -- KeyDiff --------------------------------------------------------------------------------------------------------


def like_the_mean(keys: Tensor, is_there: Tensor) -> Tensor:
    """Keep what points where all point."""
    return -unlike_the_mean(keys, is_there)


def mean_of_sizes(keys: Tensor, is_there: Tensor) -> Tensor:
    """Let large keys pull the mean."""
    anchor = (keys * is_there[..., None]).sum(dim=1, keepdim=True)
    return -torch.nn.functional.cosine_similarity(keys, anchor, dim=-1)


def mean_with_padding(keys: Tensor, is_there: Tensor) -> Tensor:
    """Let padding pull the mean."""
    return unlike_the_mean(keys, torch.ones_like(is_there))


def by_products(keys: Tensor, is_there: Tensor) -> Tensor:
    """Score by the product with the mean, not by the angle."""
    score: Tensor = unlike_the_mean(keys, is_there) * keys.norm(dim=-1)
    return score


def as_first_met(self: KeyDifference, view: PromptView) -> Tensor:
    """Score by position once something has left."""
    score = key_prompt(self, view)
    return view.position.expand_as(score).double() if score.shape[2] < 24 else score


# -- LagKV ----------------------------------------------------------------------------------------------------------


def against_itself(self: LagRank, entries: Tensor, column: Tensor) -> Tensor:
    """Scale a partition to its own range."""
    shifted = (column - self.lag).clamp(min=0)
    return unevenness(self, entries, torch.cat([column[..., : self.lag], shifted[..., self.lag :]], dim=-1))


def divided_by_nothing(self: LagRank, entries: Tensor, column: Tensor) -> Tensor:
    """Divide by a range of nothing."""
    index = column[..., None].expand(-1, -1, -1, entries.shape[3])
    parts = entries.gather(2, index).unflatten(2, (-1, self.lag))
    low, high = parts[:, :, 1:].amin(dim=3, keepdim=True), parts[:, :, 1:].amax(dim=3, keepdim=True)
    uneven: Tensor = ((parts[:, :, :-1] - low) / (high - low)).std(dim=-1).softmax(dim=-1)
    return uneven


def without_softmax(self: LagRank, entries: Tensor, column: Tensor) -> Tensor:
    """Add deviations of keys and values as they are."""
    index = column[..., None].expand(-1, -1, -1, entries.shape[3])
    parts = entries.gather(2, index).unflatten(2, (-1, self.lag))
    low, high = parts[:, :, 1:].amin(dim=3, keepdim=True), parts[:, :, 1:].amax(dim=3, keepdim=True)
    return torch.where(high > low, (parts[:, :, :-1] - low) / (high - low), 0.0).std(dim=-1)


def of_columns(self: LagRank, view: PromptView) -> Tensor:
    """Count partitions from the first column, padding or not."""
    at = torch.arange(view.keys.shape[2]).expand(len(view.keys), 1, -1)
    return lag_prompt(self, replace(view, position=at))


def last_partition_too(self: LagRank, view: PromptView) -> Tensor:
    """Rank the last whole partition with what is left of the text after it."""
    score = lag_prompt(self, view)
    score[..., -self.lag :] = view.keys[..., -self.lag :, 0].sigmoid()
    return score


def values_across_partitions(self: LagRank, view: PromptView) -> Tensor:
    """Compare entries of all partitions with each other."""
    score = lag_prompt(self, view)
    return torch.where(score < 1, score * view.keys[..., 0].sigmoid(), score)


# -- Expected Attention ---------------------------------------------------------------------------------------------


def statistics_with_sinks(view: PromptView, heads: slice, num_sink: int) -> tuple[Tensor, Tensor]:
    """Count the queries of the first tokens."""
    return statistics(view, heads, 0)


def statistics_as_read(view: PromptView, heads: slice, num_sink: int) -> tuple[Tensor, Tensor]:
    """Leave the queries rotated."""
    return statistics(replace(view, shape=replace(view.shape, rotary=None)), heads, num_sink)


def second_moment(view: PromptView, heads: slice, num_sink: int) -> tuple[Tensor, Tensor]:
    """Take the second moment for the covariance."""
    mean, covariance = statistics(view, heads, num_sink)
    return mean, covariance + mean[..., None] * mean[..., None, :]


def first_member(view: PromptView, heads: slice, num_sink: int) -> tuple[Tensor, Tensor]:
    """Look at one query head of each group."""
    mean, covariance = statistics(view, heads, num_sink)
    return mean[:, :, :1].expand_as(mean), covariance[:, :, :1].expand_as(covariance)


def rotation_of_the_longest(view: PromptView, num_future: int) -> Tensor:
    """Count the positions ahead from the longest row for all rows."""
    at = view.query_position.amax(dim=0, keepdim=True).expand_as(view.query_position)
    return mean_rotation(replace(view, query_position=at), num_future)


def rotation_backwards(view: PromptView, num_future: int) -> Tensor:
    """Turn the wrong way."""
    return mean_rotation(view, num_future).transpose(-1, -2)


def without_values(self: ExpectedAttention, view: PromptView) -> Tensor:
    """Score by keys alone, whatever is set."""
    return expected_prompt(replace(self, with_value_norm=False), view)


def full_variance(view: PromptView, heads: slice, num_sink: int) -> tuple[Tensor, Tensor]:
    """Forget that the variance counts half."""
    mean, covariance = statistics(view, heads, num_sink)
    return mean, covariance * 2


key_loops = loops("keydiff", scorers.key_difference)
again = partial(scorers.measured_again_while_decoding, "llama_gqa")
lag_loops = loops("lagkv", scorers.lag_rank(4))
lag_8_loops = loops("lagkv", scorers.lag_rank(8), "scorer.lag=8")
expected_loops = loops("expected_attention", expectation.expected_attention(16))
plain_expected_loops = loops(
    "expected_attention",
    expectation.expected_attention(16, with_covariance=False, with_value_norm=False),
    "scorer.with_covariance=false",
    "scorer.with_value_norm=false",
)
drawn, final = expectation.equals_drawn_queries, scorers.finished_partitions_are_final

MUTANTS = (
    broken(
        "keys like the others stay",
        key_difference,
        "_unlike_the_mean",
        like_the_mean,
        key_loops,
        scorers.worked_key_difference,
        again,
    ),
    broken(
        "large keys pull the mean direction",
        key_difference,
        "_unlike_the_mean",
        mean_of_sizes,
        key_loops,
        scorers.size_of_keys_does_not_matter,
    ),
    broken("padding pulls the mean direction", key_difference, "_unlike_the_mean", mean_with_padding, key_loops),
    broken(
        "keys are compared by products",
        key_difference,
        "_unlike_the_mean",
        by_products,
        key_loops,
        scorers.size_of_keys_does_not_matter,
    ),
    broken("what is held is not measured again", KeyDifference, "prompt", as_first_met, again),
    broken("a partition is its own measure", LagRank, "_unevenness", against_itself, lag_loops),
    broken("a channel without range divides by nothing", LagRank, "_unevenness", divided_by_nothing, final),
    broken("keys and values are added without a softmax", LagRank, "_unevenness", without_softmax, lag_8_loops),
    broken("partitions begin at the first column", LagRank, "prompt", of_columns, lag_loops),
    broken(
        "the last partition is ranked",
        LagRank,
        "prompt",
        last_partition_too,
        lag_loops,
        final,
        scorers.unfinished_text_keeps_the_latest,
    ),
    broken(
        "partitions are compared with each other",
        LagRank,
        "prompt",
        values_across_partitions,
        lag_loops,
        scorers.partitions_lose_the_same,
    ),
    broken(
        "queries of the first tokens count",
        expected,
        "query_statistics",
        statistics_with_sinks,
        expected_loops,
        drawn,
    ),
    broken(
        "queries stay rotated",
        expected,
        "query_statistics",
        statistics_as_read,
        expected_loops,
        plain_expected_loops,
        drawn,
    ),
    broken(
        "the second moment is taken for the covariance",
        expected,
        "query_statistics",
        second_moment,
        expected_loops,
        drawn,
        expectation.without_spread_is_the_mean_query,
    ),
    broken("the variance counts in full", expected, "query_statistics", full_variance, expected_loops, drawn),
    broken(
        "one query head speaks for its group",
        expected,
        "query_statistics",
        first_member,
        expected_loops,
        plain_expected_loops,
    ),
    broken("all rows go on from the longest", expected, "mean_rotation", rotation_of_the_longest, expected_loops),
    broken(
        "the mean rotation turns back",
        expected,
        "mean_rotation",
        rotation_backwards,
        expected_loops,
        plain_expected_loops,
        drawn,
    ),
    broken(
        "values do not count",
        ExpectedAttention,
        "prompt",
        without_values,
        expected_loops,
        expectation.size_of_values_does_not_matter,
    ),
)
