"""Expected attention by plain loops and by drawing queries; nothing is shared with the scorer."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from kvbench.cache.views import PromptView
from tests.support import toy
from tests.support.checks import assert_close
from tests.support.scorers import Loops
from tests.support.states import States, rotated
from tests.support.strategies import strategy


def expected_attention(future: int, *, with_covariance: bool = True, with_value_norm: bool = True) -> Loops:
    """Each future position turns the mean query and each deviation from it on its own; then softmax, mean, norm."""

    def loops(made: States, sinks: int, budget: int) -> list[list[float]]:
        tokens = made.key.shape[1]
        ahead = torch.arange(tokens, tokens + future)

        def turned_back(key: Tensor) -> Tensor:  # a key against the mean rotation is the mean of the key turned back
            return rotated(key.expand(future, -1), -ahead, made.frequency).mean(dim=0)

        def logits_of(queries: Tensor, back: list[Tensor]) -> list[float]:
            mean = queries.mean(dim=0)
            logits = [float(key @ mean) * made.scale for key in back]
            if not with_covariance:
                return logits
            spread = [[float(key @ (query - mean)) * made.scale for query in queries] for key in back]
            return [
                a + sum(b * b for b in products) / len(products) / 2 for a, products in zip(logits, spread, strict=True)
            ]

        result = []
        for group, (keys, values) in enumerate(zip(made.key, made.value, strict=True)):
            back = [turned_back(key) for key in keys[sinks:]]
            expected = [0.0] * (tokens - sinks)
            for head in made.members(group):
                logits = logits_of(made.raw_query[head, sinks:], back)
                total = sum(math.exp(logit - max(logits)) for logit in logits)
                for at, logit in enumerate(logits):
                    expected[at] += math.exp(logit - max(logits)) / total / made.share
            if with_value_norm:
                expected = [e * math.hypot(*value.tolist()) for e, value in zip(expected, values[sinks:], strict=True)]
            result.append([max(expected)] * sinks + expected)
        return result

    return loops


def small_view(*, rotary: Tensor | None, tokens: int = 40, seed: int = 0) -> PromptView:
    """Return a prompt of 4 query heads and 2 KV heads of width 6 whose logits are small."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(1, 4, tokens, 6, generator=generator).double() * 0.7 + 0.3
    keys, values = (torch.randn(1, 2, tokens, 6, generator=generator).double() for _ in range(2))
    shape = replace(toy.SHAPE, query_heads=4, kv_heads=2, key_dim=6, value_dim=6, rotary=rotary)
    return replace(toy.view(query, keys), values=values, shape=shape, scale=6**-0.5)


def equals_drawn_queries() -> None:
    """The closed form is the mean exponential over queries drawn from the same normal distribution."""
    frequency = torch.tensor([1.0, 0.1], dtype=torch.float64)  # of 6 dimensions 4 are rotated
    view, sinks, future = small_view(rotary=frequency), 2, 16
    made = strategy("expected_attention", "scorer.with_value_norm=false")
    got = made.scorer.prompt(view)[0, :, sinks:]
    generator, ahead = torch.Generator().manual_seed(1), torch.arange(40, 40 + future)
    for group in range(2):
        drawn = torch.zeros(40 - sinks).double()
        for head in (2 * group, 2 * group + 1):
            raw = rotated(view.query[0, head], -torch.arange(40), frequency)[sinks:]
            root = torch.linalg.cholesky(torch.cov(raw.T, correction=0))
            queries = raw.mean(dim=0) + torch.randn(200_000, 6, generator=generator).double() @ root.T
            keys = view.keys[0, group]
            back = torch.stack([rotated(key.expand(future, -1), -ahead, frequency).mean(dim=0) for key in keys])
            mean = (queries @ back[sinks:].T * view.scale).exp().mean(dim=0)
            drawn += mean / mean.sum() / 2
        torch.testing.assert_close(got[group], drawn, rtol=0.02, atol=0)
        assert drawn.max() > 1.5 * drawn.min(), "all entries are alike: the comparison proves nothing"


def size_of_values_does_not_matter() -> None:
    """Values of twice the size give twice the scores, and so the same entries."""
    view = small_view(rotary=None)
    scorer = strategy("expected_attention").scorer
    assert_close(scorer.prompt(replace(view, values=view.values * 2)), 2 * scorer.prompt(view))


def without_spread_is_the_mean_query() -> None:
    """Queries that are all the same give that query's own attention, without the sinks."""
    view = small_view(rotary=None)
    view = replace(view, query=view.query[:, :, :1].expand(-1, -1, 40, -1))
    got = strategy("expected_attention", "scorer.with_value_norm=false").scorer.prompt(view)
    query = view.query[0, :, -1].unflatten(0, (2, 2))
    want = torch.einsum("gsd,gnd->gsn", query, view.keys[0, :, 2:] * view.scale).softmax(dim=-1).mean(dim=1)
    assert_close(got[0, :, 2:], want)
