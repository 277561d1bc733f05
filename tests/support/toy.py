"""Worked examples small enough to do by hand: one head, six tokens, attention given as numbers."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kvbench.cache.codecs.dense import Dense
from kvbench.cache.layer import CacheLayer
from kvbench.cache.plan import LayerPlan
from kvbench.cache.protocols import Scorer, Selector
from kvbench.cache.views import PromptView
from kvbench.models.view import view_of
from kvbench.strategies.base import CacheStrategy
from kvbench.types import DECODE, PREFILL, LayerShape, RunShape
from tests.support.checks import assert_close
from tests.support.drive import scores
from tests.support.models import model
from tests.support.strategies import strategy

ROWS = (
    (1.0,),
    (0.1, 0.9),
    (0.05, 0.75, 0.2),
    (0.05, 0.35, 0.5, 0.1),
    (0.05, 0.15, 0.5, 0.2, 0.1),
    (0.3, 0.2, 0.04, 0.36, 0.06, 0.04),
)
COLUMN_SUMS = (1.55, 2.35, 1.24, 0.66, 0.16, 0.04)
WIDTH = 8
BUDGET = 4


SHAPE = LayerShape(query_heads=1, kv_heads=1, key_dim=WIDTH, value_dim=WIDTH, window=0, rotary=None)


def query_of(weights: dict[int, float]) -> Tensor:
    """Return a query [1, 1, 1, D] that pays so much attention to the keys `key_of` these positions."""
    query = torch.zeros(1, 1, 1, WIDTH, dtype=torch.float64)
    for position, weight in weights.items():
        query[..., position] = torch.tensor(weight, dtype=torch.float64).log()
    return query


def key_of(position: int) -> Tensor:
    """Return a key [1, 1, 1, D] of its own direction."""
    return torch.eye(WIDTH, dtype=torch.float64)[position].view(1, 1, 1, WIDTH)


def prompt(rows: tuple[tuple[float, ...], ...] = ROWS) -> tuple[Tensor, Tensor]:
    """Return queries and keys [1, 1, 6, D] whose causal attention, at scale 1, is exactly these rows."""
    queries = torch.cat([query_of(dict(enumerate(row))) for row in rows], dim=2)
    return queries, torch.cat([key_of(position) for position in range(len(rows))], dim=2)


def view(query: Tensor, keys: Tensor) -> PromptView:
    """Return what a scorer sees of a prompt [1, 1, n, D] read at once."""
    at = torch.arange(keys.shape[2], dtype=torch.int32)[None]
    return PromptView(
        layer=0,
        shape=SHAPE,
        query=query,
        keys=keys,
        values=keys,
        position=at[:, None],
        query_position=at,
        scale=1.0,
        budget=(BUDGET,),
    )


def kept(scorer: Scorer, selector: Selector, seen: PromptView) -> set[int]:
    """Return the entries of a prompt that stay within four."""
    length = seen.keys.shape[2]
    index, has_holes = selector.keep(scorer.prompt(seen), seen.position, [BUDGET], [length])
    assert not has_holes
    assert index.shape == (1, 1, BUDGET)
    chosen: list[int] = index[0, 0].tolist()
    assert chosen == sorted(chosen), "the kept entries are not in order of position"
    return set(chosen)


def prompt_set_is(want: set[int], name: str, *overrides: str) -> None:
    """The method's scorer and selector keep these entries of the six."""
    made = strategy(name, *overrides)
    assert kept(made.scorer, made.selector, view(*prompt())) == want


PROMPT_SETS = (
    ("sliding_window", (), {2, 3, 4, 5}),
    ("attention_sink", ("selector.num_sink=1",), {0, 3, 4, 5}),
    ("h2o", (), {0, 1, 4, 5}),
    ("tova", (), {0, 1, 3, 4}),
    ("tova", ("selector.num_recent=1",), {0, 1, 3, 5}),
    ("snapkv", ("scorer.window=2", "scorer.kernel=1"), {2, 3, 4, 5}),
    ("snapkv", ("scorer.window=2", "scorer.kernel=3", "scorer.pooling=mean"), {1, 2, 4, 5}),
    ("snapkv", ("scorer.window=2", "scorer.kernel=3", "scorer.pooling=max"), {2, 3, 4, 5}),
)


def prompt_sets() -> None:
    """All of `PROMPT_SETS` hold."""
    for name, overrides, want in PROMPT_SETS:
        prompt_set_is(want, name, *overrides)


def mass_is_the_column_sum() -> None:
    """H2O scores are sums over queries, not means."""
    score = strategy("h2o").scorer.prompt(view(*prompt()))
    assert_close(score[0, 0], torch.tensor(COLUMN_SUMS, dtype=torch.float64))


def window_votes_are_pooled() -> None:
    """SnapKV's pooled votes of the last two queries for the four entries before them."""
    made = strategy("snapkv", "scorer.window=2", "scorer.kernel=3", "scorer.pooling=mean")
    pooled = made.scorer.prompt(view(*prompt()))[0, 0, :4]
    want = torch.tensor([0.35 + 0.35, 0.7 + 0.54, 0.35 + 0.54 + 0.56, 0.54 + 0.56], dtype=torch.float64) / 3
    assert_close(pooled, want)
    assert [round(value, 4) for value in (pooled / 2).tolist()] == [0.1167, 0.2067, 0.2417, 0.1833]


def mass_accumulates_while_decoding() -> None:
    """H2O, two heavy and two recent: one more row moves the scores and token 4 leaves."""
    layer = small_layer(strategy("h2o"))
    feed_prompt(layer)
    assert layer.held_positions().tolist() == [[[0, 1, 4, 5]]]
    row = {0: 0.1, 1: 0.1, 4: 0.5, 5: 0.2, 6: 0.1}
    layer.attend(query_of(row), key_of(6), key_of(6), 1.0, DECODE)
    assert layer.held_positions().tolist() == [[[-1, 0, 1, 5, 6]]]
    (by_position,) = scores(layer, 0)
    assert {at: round(score, 12) for at, score in by_position.items()} == {0: 1.65, 1: 2.45, 4: 0.66, 5: 0.24, 6: 0.1}


def last_query_forgets_earlier_rows() -> None:
    """TOVA looks at the last row only: whatever the rows before it are, the set is the same."""
    flat = tuple(tuple([1 / (n + 1)] * (n + 1)) for n in range(5))
    made = strategy("tova")
    assert kept(made.scorer, made.selector, view(*prompt((*flat, ROWS[5])))) == {0, 1, 3, 4}


def newest_may_leave_while_decoding() -> None:
    """TOVA protects nothing: a newest token that gets least attention leaves at once."""
    layer = small_layer(strategy("tova"))
    feed_prompt(layer)
    layer.attend(query_of({0: 0.3, 1: 0.2, 3: 0.2, 4: 0.25, 6: 0.05}), key_of(6), key_of(6), 1.0, DECODE)
    assert layer.held_positions().tolist() == [[[-1, 0, 1, 3, 4]]]


def last_query_replaces_while_decoding() -> None:
    """TOVA: what the prompt's last query paid counts for nothing once another one has come."""
    layer = small_layer(strategy("tova"))
    feed_prompt(layer)
    layer.attend(query_of({0: 0.05, 1: 0.2, 3: 0.2, 4: 0.25, 6: 0.3}), key_of(6), key_of(6), 1.0, DECODE)
    assert layer.held_positions().tolist() == [[[-1, 1, 3, 4, 6]]]


def small_norms_stay() -> None:
    """L2 compression keeps the entries with small keys, whatever all keys are multiplied with."""
    made = strategy("knorm")
    directions = torch.nn.functional.normalize(
        torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(0)).double()
    )
    keys = (directions * torch.tensor([1.0, 5.0, 2.0, 9.0, 3.0, 4.0]).double()[:, None])[None, None]
    for factor in (1.0, 7.0, 0.1):
        assert kept(made.scorer, made.selector, view(keys, keys * factor)) == {0, 2, 4, 5}


def skipped_layers_keep_everything() -> None:
    """L2 compression leaves the first two layers alone."""
    shape = view_of(model("llama_gqa"))
    wide = replace(shape, layers=shape.layers * 2)
    run = RunShape(prompt_lengths=(24,), new_tokens=4)
    plans = strategy("knorm", "budget.skip_layers=[0,1]").plans(wide, run)
    assert [plan.held(run, 26) for plan in plans] == [(26,), (26,), (8,), (8,)]


def small_layer(made: CacheStrategy) -> CacheLayer:
    """Return a layer of one head with the parts of a strategy and four entries."""
    plan = LayerPlan(
        index=0,
        shape=SHAPE,
        codec=Dense(),
        scorer=made.scorer,
        selector=made.selector,
        budget=(BUDGET,),
        evicted=made.evicted,
        period=1,
        by_rank=False,
    )
    return CacheLayer(plan, RunShape(prompt_lengths=(6,), new_tokens=4), None, torch.empty(0, dtype=torch.float64))


def feed_prompt(layer: CacheLayer) -> None:
    """Read the six tokens."""
    query, keys = prompt()
    layer.attend(query, keys, keys, 1.0, PREFILL)
