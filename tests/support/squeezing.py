"""Checks of SqueezeAttention: which layers give, how much, and what their hidden states say."""

from __future__ import annotations

import copy
import itertools
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.models.view import attention_of
from kvbench.strategies.budget.squeeze import Squeeze, most_similar
from kvbench.types import RunShape
from tests.support.budgets import same, scored, shared
from tests.support.checks import BUDGET, NEW, PROMPT, assert_close, uniform
from tests.support.drive import drive, padded
from tests.support.models import LAYERS, ids, model
from tests.support.strategies import strategy

NOTED: dict[int, Tensor] = {}


class Noting(Squeeze):
    """Notes what each layer is judged by."""

    def statistic(self, view: Any) -> Tensor:
        """Note and return it."""
        NOTED[view.layer] = super().statistic(view)
        return NOTED[view.layer]


def budget(amount: int, share: float) -> Squeeze:
    """Return a budget in tokens."""
    return Noting(amount=amount, unit="tokens", skip_layers=(), share_of_least=share)


def given(values: Sequence[float], *overrides: str, length: int = 60) -> list[int | None]:
    """Return what layers keep of 10 entries on average that are as similar as this."""
    made = strategy("squeezeattention", "selector.recent_share=0", *overrides, tokens=10)
    score = torch.zeros(1, 2, length, dtype=torch.float64)
    layers = [scored(made, score, (length,), torch.tensor([value], dtype=torch.float64)) for value in values]
    kept = [row[0] for row in shared(made, layers)]
    assert all(heads == heads[:1] * 2 for heads in kept), "heads of a layer keep the same"
    return [heads[0] for heads in kept]


def layers_give_as_the_paper_says() -> None:
    """Four layers of 10, two of which give: 3, 3, 17, 17; the whole is exact and holds what is protected."""
    assert given([0.9, 0.2, 0.91, 0.1]) == [3, 17, 3, 17]
    assert given([0.9, 0.9, 0.9, 0.9]) == [10] * 4
    assert given([0.9, 0.2, 0.5, 0.1]) == [3, 13, 12, 12]
    assert given([0.9, 0.2, 0.91, 0.1], "selector.num_recent=6") == [6, 14, 6, 14]
    assert given([0.9, 0.2, 0.91, 0.1], length=12) == [8, 12, 8, 12]
    assert given([0.9, 0.2, 0.91, 0.1], length=9) == [10] * 4


def similarity_equals_hidden_states(model_name: str, chunks: Sequence[int] = ()) -> None:
    """What a layer is judged by is the mean cosine of the model's own hidden states, padding left out."""
    network = copy.deepcopy(model(model_name))
    for layer in range(LAYERS):
        found = attention_of(network, layer)
        assert found is not None
        if getattr(found[1], "bias", None) is not None:
            torch.nn.init.normal_(found[1].bias)  # type: ignore[arg-type]
    lengths = (PROMPT, 17)
    texts = [ids(40 + row, 1, length)[0] for row, length in enumerate(lengths)]
    made = replace(strategy("squeezeattention", tokens=BUDGET), budget=budget(BUDGET, 0.3))
    drive(network, made, padded(texts), RunShape(prompt_lengths=lengths, new_tokens=NEW), chunks=chunks)
    for layer in range(LAYERS):
        want = [_similarity(network, text, layer) for text in texts]
        assert_close(NOTED[layer], torch.tensor(want, dtype=NOTED[layer].dtype))


def _similarity(network: PreTrainedModel, text: Tensor, layer: int) -> float:
    added: list[Tensor] = []
    found = attention_of(network, layer)
    assert found is not None
    hook = found[0].register_forward_hook(lambda module, given, out: added.append(out[0]))
    try:
        before = network(text[None], use_cache=False, output_hidden_states=True).hidden_states[layer][0]
    finally:
        hook.remove()
    pairs = zip(before.tolist(), (before + added[0][0]).tolist(), strict=True)
    return statistics.mean(_cosine(one, other) for one, other in pairs)


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    size = math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))
    return sum(a * b for a, b in zip(one, other, strict=True)) / size


def groups_are_the_best_three() -> None:
    """The group that gives is that of the best of all ways to make three groups."""
    lots = random.Random(0)
    for _ in range(40):
        values = [lots.choice([lots.random(), lots.random() ** 4]) for _ in range(lots.randint(3, 7))]
        best = min(
            (groups for groups in itertools.product(range(3), repeat=len(values)) if len(set(groups)) == 3),
            key=lambda groups: _scatter(values, groups),
        )
        highest = max(range(len(values)), key=lambda at: values[at])
        assert most_similar(values) == {at for at, group in enumerate(best) if group == best[highest]}
    assert most_similar([0.3, 0.3, 0.3]) == set()
    assert most_similar([0.3, 0.4, 0.3]) == {1}


def _scatter(values: Sequence[float], groups: Sequence[int]) -> float:
    parts = [[value for value, mine in zip(values, groups, strict=True) if mine == group] for group in range(3)]
    return sum(len(part) * statistics.pvariance(part) for part in parts if part)


def a_share_of_one_is_h2o_bit_for_bit() -> None:
    """Where nothing is given, it is H2O."""
    same("squeezeattention", ("budget.share_of_least=1.0",), "h2o", ())


def layers_hold_their_share(model_name: str) -> None:
    """The layer that attention changes least holds a third of the mean or what it protects, the others the rest."""
    made = replace(strategy("squeezeattention", tokens=BUDGET), budget=budget(BUDGET, 0.3))
    driven = drive(model(model_name), made, ids(41, 1, PROMPT + NEW), uniform())
    least = max(range(LAYERS), key=lambda layer: float(NOTED[layer]))
    for step in driven.held:
        counts = [int((held[0, 0] >= 0).sum()) for held in step]
        assert sum(counts) == LAYERS * BUDGET
        assert counts[least] < BUDGET / 2


def nothing_stays_behind() -> None:
    """Hooks are gone with the context, and no layer keeps hidden states or their sums."""
    network = model("llama_gqa")
    driven = drive(network, strategy("squeezeattention", tokens=BUDGET), ids(42, 1, PROMPT + NEW), uniform())
    left = [module for module in network.modules() if module._forward_pre_hooks]
    for module in left:  # whatever comes of this check, nothing is to stay for others
        module._forward_pre_hooks.clear()
    assert not left
    assert all(layer.hidden is None and layer._similarity is None for layer in driven.cache.layers)
