"""Checks of scores: against transformers' own attention weights, and across ways of grouping heads."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from kvbench.cache.protocols import Scorer
from kvbench.cache.views import Observation, PromptView
from tests.support.checks import BUDGET, EXACT, NEW, PROMPT, assert_close, assert_same_held, uniform
from tests.support.drive import drive, slots_of
from tests.support.models import HEADS, LAYERS, attention, ids, model
from tests.support.strategies import strategy

# transformers' eager softmax is float32 for Llama: PROMPT weights of at most 1, half a unit in the last place each
ROUNDING = {"llama_mha": PROMPT * 2**-24, "llama_gqa": PROMPT * 2**-24, "gpt2": 1e-10}


class Wrapped:
    """A scorer around another one."""

    def __init__(self, inner: Scorer) -> None:
        self.inner = inner
        for name in dir(inner):  # from Python 3.12 on a protocol does not ask __getattr__
            if not name.startswith("_") and not hasattr(type(self), name):
                vars(self)[name] = getattr(inner, name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Spy(Wrapped):
    """Notes the scores of the prompt, layer by layer."""

    def __init__(self, inner: Scorer) -> None:
        super().__init__(inner)
        self.noted: dict[int, Tensor] = {}

    def prompt(self, view: PromptView) -> Tensor:
        """Return and note the scores."""
        self.noted[view.layer] = self.inner.prompt(view).clone()
        return self.noted[view.layer]


def scores_equal_eager_attention(name: str, model_name: str) -> None:
    """GO9: scores from blockwise passes are those of the attention weights that transformers' eager path returns."""
    network, tokens = model(model_name), ids(20, 2, PROMPT)
    with attention(network, "eager"):
        eager = network(tokens, use_cache=False, output_attentions=True).attentions
    made = strategy(name, *(("scorer.kernel=1",) if name == "snapkv" else ()), tokens=BUDGET)
    spy = Spy(made.scorer)
    drive(network, replace(made, scorer=spy), tokens, uniform(new=0, rows=2))
    for layer, weights in enumerate(eager):
        groups = 2 if model_name == "llama_gqa" else HEADS
        want = {
            "h2o": lambda w, g=groups: w.sum(dim=2).unflatten(1, (g, -1)).mean(dim=2),
            "snapkv": lambda w, g=groups: w[:, :, -4:].sum(dim=2).unflatten(1, (g, -1)).mean(dim=2),
            "tova": lambda w, g=groups: w[:, :, -1].mean(dim=1, keepdim=True),
        }[name](weights)
        torch.testing.assert_close(spy.noted[layer], want, rtol=0, atol=ROUNDING[model_name])


def mass_is_conserved(model_name: str) -> None:
    """H2O: every query gives each head exactly 1, so as long as nothing left the scores add up to the queries."""
    made = strategy("h2o", tokens=PROMPT + NEW)
    tokens, seen = ids(21, 2, PROMPT + NEW), []

    def watch(cache: Any, columns: int) -> None:
        for layer in cache.layers:
            slots = slots_of(layer)
            assert slots.score is not None
            total = slots.score[:, :, : slots.filled].sum(dim=-1)
            assert_close(total, torch.full_like(total, columns))
            seen.append(columns)

    drive(model(model_name), made, tokens, uniform(rows=2), watch=watch)
    assert len(seen) == (NEW + 1) * LAYERS


@dataclass(frozen=True, kw_only=True)
class RepeatedView(PromptView):
    """A prompt of a model whose KV heads are copies, seen as one with fewer heads and the mean over each group."""

    full: PromptView = field()
    share: int = field()

    def attention_received(self, last: int = 0) -> Tensor:
        """Return the mean over the copies [B, G, n]."""
        received: Tensor = self.full.attention_received(last).unflatten(1, (-1, self.share))
        return received.mean(dim=2)


class GroupMean(Wrapped):
    """Scores repeated KV heads as a group: one score for all copies, from the mean of their attention."""

    share = 2

    def prompt(self, view: PromptView) -> Tensor:
        """Return the same score for every copy."""
        given = {each.name: getattr(view, each.name) for each in fields(PromptView) if each.init}
        given |= {"keys": view.keys[:, :: self.share], "values": view.values[:, :: self.share]}
        return self._repeat(self.inner.prompt(RepeatedView(**given, full=view, share=self.share)))

    def entry(self, key: Tensor, position: Tensor, layer: int) -> Tensor:
        """Return the same score for every copy."""
        return self._repeat(self.inner.entry(key[:, :: self.share], position, layer))

    def observe(self, seen: Observation) -> None:
        """Update every copy with the mean."""
        ours = seen.score[:, :: self.share].clone()
        weights = seen.weights.unflatten(1, (-1, self.share)).mean(dim=2)
        position = seen.position[:, :: self.share]
        self.inner.observe(replace(seen, score=ours, weights=weights, position=position))
        seen.score.copy_(self._repeat(ours))

    def _repeat(self, score: Tensor) -> Tensor:
        return score.repeat_interleave(self.share, dim=1)


@functools.cache
def repeated_heads() -> PreTrainedModel:
    """Return the grouped-query model as one with a KV head per query head."""
    grouped: Any = model("llama_gqa")
    config = LlamaConfig(**(grouped.config.to_dict() | {"num_key_value_heads": HEADS}))
    made: PreTrainedModel = LlamaForCausalLM(config).double().eval().requires_grad_(False)
    weights = {
        name: weight.unflatten(0, (2, -1)).repeat_interleave(2, dim=0).flatten(0, 1)
        if "k_proj" in name or "v_proj" in name
        else weight
        for name, weight in grouped.state_dict().items()
    }
    made.load_state_dict(weights)
    made.base_model.rotary_emb = grouped.base_model.rotary_emb
    return made


def grouped_heads_equal_repeated_heads(name: str) -> None:
    """GO6: a grouped-query model is the model with copied KV heads, scored by the mean over each group."""
    tokens, made = ids(22, 2, PROMPT + NEW), strategy(name, tokens=BUDGET)
    grouped = drive(model("llama_gqa"), made, tokens, uniform(rows=2))
    per_head = made.scorer.per_head and made.budget.limits
    apart = replace(made, scorer=GroupMean(made.scorer)) if per_head else made
    repeated = drive(repeated_heads(), apart, tokens, uniform(rows=2))
    assert_close(grouped.logits, repeated.logits)
    copies = [[held.repeat_interleave(2, dim=1) if per_head else held for held in step] for step in grouped.held]
    assert_same_held(repeated.held, copies)
    for layer in range(LAYERS):
        for mine, theirs in zip(grouped.scores[-1][layer], repeated.scores[-1][layer], strict=True):
            for one, other in zip(mine, theirs[:: 2 if per_head else 1], strict=True):
                assert one == pytest.approx(other, rel=0, abs=EXACT)
