"""What is asked of the arms, and where there is nothing to say."""

from __future__ import annotations

import pytest
import torch

from kvbench.asking import ask_attention
from kvbench.bench import Bench
from kvbench.configuration import check, compose
from kvbench.runner import job_of

LITTLE = ("model=tiny", "model.device=cpu", "workload.prompt_tokens=160", "quality.attention_tokens=64")


def lost(*overrides: str) -> object:
    """Return the share of attention lost that a row says, None for none."""
    with torch.no_grad():
        bench = Bench(job_of(check(compose([*LITTLE, *overrides]))), lambda what, share: None)
        ask_attention(bench)
    return bench.measured.rows["strategy"].get("attention_lost")


def test_fewer_entries_lose_more_attention() -> None:
    half, quarter = (lost("strategy=h2o", f"strategy.budget.amount={share}") for share in (0.5, 0.25))
    assert isinstance(half, float)
    assert isinstance(quarter, float)
    assert 0.01 < half < quarter < 0.5
    assert lost("strategy=h2o", "strategy.budget.unit=tokens", "strategy.budget.amount=64") == 0


def test_who_looks_at_attention_loses_less_of_it_than_lots_do() -> None:
    """Lots that protect nothing lose about the share that left, but for a token's attention to itself."""
    long = "quality.attention_tokens=256"
    lots = lost("strategy=random_eviction", "strategy.selector.num_sink=0", "strategy.selector.num_recent=0", long)
    chosen = lost("strategy=h2o", long)
    assert isinstance(lots, float)
    assert isinstance(chosen, float)
    assert chosen < 0.5 * lots
    assert 0.5 < lots < 0.75


@pytest.mark.parametrize(
    "line",
    [
        "strategy=quest",
        "strategy=d2o",
        "strategy=tiered",
        "strategy=h2o quality.attention_tokens=0",
        "strategy=h2o compare=none",
        "strategy=snapkv quality.attention_tokens=40",  # a quarter of 24 is fewer than its window protects
    ],
)
def test_attention_lost_is_empty_where_nothing_is_lost_for_good_or_nothing_can_be_said(line: str) -> None:
    assert lost(*line.split()) is None
