"""Attention lost is what transformers' own attention pays to positions that a strategy does not hold."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench import tracing
from kvbench.api import strategy
from kvbench.cache.doors import ATTENTION
from kvbench.strategies.base import CacheStrategy
from tests.mutants.attention_lost import mutants
from tests.mutants.core_mutant import Mutant, each_of
from tests.support.models import attention, ids, model

PROMPT, NEW, BUDGET = 32, 10, 12
ROUNDING = 1e-6  # transformers takes its softmax in float32
Mask = Callable[[int, int, int], set[int]]  # which positions are there, of a layer and a KV head when a token comes


def lost_of(network: PreTrainedModel, built: CacheStrategy, tokens: Tensor) -> tuple[Tensor, tracing.Trace]:
    """Return what a strategy loses on a model, and what it held."""
    traced = tracing.trace(network, built, tokens, PROMPT)
    with attention(network, ATTENTION):
        return tracing.attention_lost(tracing.arm_of(network, strategy("baseline")), tokens, traced.held), traced


def stock_lost(network: PreTrainedModel, tokens: Tensor, kept: Mask) -> Tensor:
    """Return the same in plain loops over the attention that transformers says of one row [steps, layers]."""
    with attention(network, "eager"), torch.no_grad():
        said = network(tokens, output_attentions=True, use_cache=False).attentions
    lost = torch.zeros(tokens.shape[1] - PROMPT, len(said), dtype=torch.float64)
    kv_heads = getattr(network.config, "num_key_value_heads", network.config.num_attention_heads)
    for layer, weights in enumerate(said):
        for step, query in enumerate(range(PROMPT, tokens.shape[1])):
            for head, row in enumerate(weights[0, :, query].tolist()):
                there = kept(layer, head * kv_heads // weights.shape[1], query)
                gone = sum(weight for at, weight in enumerate(row) if at not in there)
                assert gone + sum(row[at] for at in there) == pytest.approx(1, abs=ROUNDING)
                lost[step, layer] += gone / weights.shape[1]
    return lost


def of_trace(held: Sequence[Sequence[Tensor]]) -> Mask:
    """Return what a trace says was there: what was held before a token, and the token."""

    def kept(layer: int, head: int, query: int) -> set[int]:
        row = held[query - PROMPT][layer][0]
        return {query, *row[head if len(row) > 1 else 0].tolist()} - {-1}

    return kept


def the_latest(layer: int, head: int, query: int) -> set[int]:
    """Return what a sliding window of so many entries must hold, and the token."""
    return set(range(query - BUDGET, query + 1))


def small(method: str) -> CacheStrategy:
    """Return a method that keeps so few entries that only few of them are protected."""
    window = {"scorer": {"window": 4}} if method in ("snapkv", "adakv") else {}
    return strategy(method, budget={"amount": BUDGET, "unit": "tokens"}, **window)


def check_a_mask_known_beforehand(name: str = "llama_gqa") -> None:
    """The mask of a sliding window needs no trace."""
    tokens = ids(3, 1, PROMPT + NEW)
    lost, _ = lost_of(model(name), small("sliding_window"), tokens)
    want = stock_lost(model(name), tokens, the_latest)
    assert lost.shape == want.shape
    assert want.min() > 0.01, "nothing to lose: the comparison proves nothing"
    torch.testing.assert_close(lost.double(), want, rtol=0, atol=ROUNDING)


def check_what_is_held(method: str = "adakv", name: str = "llama_gqa") -> None:
    """Heads hold different positions, and different numbers of them; layers with a window lose nothing."""
    tokens = ids(4, 1, PROMPT + NEW)
    lost, traced = lost_of(model(name), small(method), tokens)
    want = stock_lost(model(name), tokens, of_trace(traced.held))
    torch.testing.assert_close(lost.double(), want, rtol=0, atol=ROUNDING)
    assert (lost[:, 0] == 0).all() == (name == "gemma3"), "its first layer slides, and sees what it saw before"
    assert (lost[:, 1] > 0.01).all()


@pytest.mark.parametrize("name", ["llama_gqa", "llama_mha", "gpt2"])
def test_a_sliding_window_loses_what_transformers_pays_to_all_before_it(name: str) -> None:
    check_a_mask_known_beforehand(name)


@pytest.mark.parametrize("name", ["llama_gqa", "gpt2", "gemma3"])
@pytest.mark.parametrize("method", ["h2o", "snapkv", "adakv", "attention_sink"])
def test_other_methods_lose_what_transformers_pays_to_what_is_not_held(method: str, name: str) -> None:
    check_what_is_held(method, name)


@each_of(mutants(check_a_mask_known_beforehand, check_what_is_held))
def test_the_oracle_catches(mutant: Mutant, check: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


@pytest.mark.parametrize("name", ["baseline", "quest", "h2o"])
def test_who_holds_everything_loses_exactly_nothing(name: str) -> None:
    everything = {"budget": {"amount": PROMPT + NEW, "unit": "tokens"}} if name == "h2o" else {}
    lost, _ = lost_of(model("llama_gqa"), strategy(name, **everything), ids(5, 2, PROMPT + NEW))
    assert lost.shape == (NEW, 2)
    assert (lost == 0).all()


def test_even_attention_is_lost_by_the_share_of_positions_that_left() -> None:
    """Without queries every position gets the same: whatever stays, what is lost is a matter of counting."""
    network = copy.deepcopy(model("llama_gqa"))
    for name, weight in network.named_parameters():
        weight.mul_(0.0 if "q_proj" in name else 1.0)
    unprotected = {"num_sink": 0, "num_recent": 0}
    built = strategy("random_eviction", budget={"amount": BUDGET, "unit": "tokens"}, selector=unprotected)
    lost, _ = lost_of(network, built, ids(6, 1, PROMPT + NEW))
    seen = torch.arange(PROMPT, PROMPT + NEW)[:, None]
    want = ((seen - BUDGET) / (seen + 1)).expand(-1, 2)
    torch.testing.assert_close(lost.double(), want.double(), rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("method", ["h2o", "adakv", "kvzip"])
def test_what_is_held_is_what_a_trace_says(method: str) -> None:
    """Without its logits, and where the prompt is read again for its scores."""
    tokens = ids(8, 2, PROMPT + NEW)
    said = tracing.trace(model("llama_gqa"), small(method), tokens, PROMPT).held
    with attention(model("llama_gqa"), ATTENTION) as network:
        found = tracing.held_by(tracing.arm_of(network, small(method)), tokens, PROMPT)
    for mine, theirs in zip(found, said, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_a_trace_without_decoded_tokens_says_nothing() -> None:
    lost, _ = lost_of(model("llama_gqa"), strategy("baseline"), ids(7, 1, PROMPT))
    assert lost.shape == (0, 2)


KEPT = ("baseline", "quest", "kivi4", "minicache", "d2o", "fixed_size", "tiered")
LOST = ("h2o", "snapkv", "sliding_window", "adakv")


@pytest.mark.parametrize(("name", "forgets"), [*((name, False) for name in KEPT), *((name, True) for name in LOST)])
def test_only_what_leaves_for_good_is_lost(name: str, *, forgets: bool) -> None:
    assert strategy(name).forgets == forgets
