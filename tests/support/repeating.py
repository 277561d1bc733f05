"""Checks of KVzip: what reading the prompt again says of its entries, and how all heads share what stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.protocols import Repeater
from kvbench.strategies.budget.base import Uniform
from kvbench.types import RunShape
from tests.support.checks import BUDGET, EXACT, NEW, PROMPT, assert_same_held, uniform
from tests.support.drive import drive, padded, positions
from tests.support.models import HEADS, LAYERS, attention, ids, model
from tests.support.scores import Wrapped
from tests.support.strategies import strategy

CHUNK, LEAD, SINKS = 10, 3, 2
Scores = list[list[list[float]]]  # per layer and KV head, per position


class Note(Wrapped):
    """Notes what each pass says of its columns, per layer."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.noted: dict[int, list[Tensor]] = {}

    def repeated(self, view: Any, columns: slice) -> Tensor:
        """Note and return it."""
        assert isinstance(self.inner, Repeater)
        score = self.inner.repeated(view, columns)
        self.noted.setdefault(view.layer, []).append(score.clone())
        return score


def noted(model_name: str, tokens: Tensor, run: RunShape, *overrides: str, **more: Any) -> list[Tensor]:
    """Return the scores of all columns per layer [B, G, n]."""
    made = strategy("kvzip", *overrides, tokens=BUDGET)
    spy = Note(made.scorer)
    drive(model(model_name), replace(made, scorer=spy), tokens, run, **more)
    return [torch.cat(spy.noted[layer], dim=2) for layer in range(LAYERS)]


def slow_scores(model_name: str, text: Tensor, groups: int) -> Scores:
    """Return the scores from the weights of an eager model that reads prompt and repetition at once."""
    tokens, share = len(text), HEADS // groups
    found: Scores = [[[0.0] * tokens for _ in range(groups)] for _ in range(LAYERS)]
    stop = tokens
    while stop > 0:
        start = max(0, stop - CHUNK)
        first = max(0, start - LEAD)
        whole = torch.cat([text, text[first:stop]])
        with attention(model(model_name), "eager") as network:
            weights = network(whole[None], use_cache=False, output_attentions=True).attentions
        seen = sorted({*range(min(SINKS, tokens)), *range(start, stop), *range(tokens, len(whole))})
        for layer in range(LAYERS):
            for head in range(HEADS):
                for query in range(tokens + start - first, len(whole)):
                    row = weights[layer][0, head, query].tolist()
                    total = sum(row[at] for at in seen)
                    mine = found[layer][head // share]
                    for at in range(start, stop):
                        mine[at] = max(mine[at], row[at] / total)
        stop = start
    return found


def scores_equal_attention_to_the_repetition(model_name: str, chunks: Sequence[int] = ()) -> None:
    """Each entry's score is the most weight that any query of its chunk's repetition gives it, rows padded or not."""
    lengths = (PROMPT, 17)
    texts = [ids(50 + row, 1, length)[0] for row, length in enumerate(lengths)]
    run = RunShape(prompt_lengths=lengths, new_tokens=0)
    got = noted(model_name, padded(texts), run, chunks=chunks)
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        want = slow_scores(model_name, text, got[0].shape[1])
        for layer in range(LAYERS):
            mine = got[layer][row, :, PROMPT - length :]
            rounding = 1e-6 if model_name.startswith("llama") else EXACT  # its eager softmax is float32
            torch.testing.assert_close(mine, torch.tensor(want[layer], dtype=mine.dtype), rtol=0, atol=rounding)
            assert not bool(got[layer][row, :, : PROMPT - length].any()), "padding has a score"


def one_pool_keeps_the_best_of_all_layers(model_name: str) -> None:
    """Heads of all layers compete: sinks stay, and of all other entries the best; the whole is exact."""
    tokens = ids(52, 1, PROMPT)
    score = noted(model_name, tokens, uniform(new=0))
    groups = score[0].shape[1]
    driven = drive(model(model_name), strategy("kvzip", tokens=BUDGET), tokens, uniform(new=0))
    heads = [(layer, group) for layer in range(LAYERS) for group in range(groups)]
    free = [
        (float(score[layer][0, group, at]), at, layer, group) for layer, group in heads for at in range(SINKS, PROMPT)
    ]
    best = sorted(free, reverse=True)[: (BUDGET - SINKS) * len(heads)]
    held = [positions(driven.held[0][layer][0]) for layer in range(LAYERS)]
    for layer, group in heads:
        won = sorted(at for _, at, *where in best if where == [layer, group])
        assert held[layer][group] == [*range(SINKS), *won]
    counts = [len(held[layer][group]) for layer, group in heads]
    assert sum(counts) == BUDGET * len(heads)
    assert len({sum(map(len, layer)) for layer in held}) > 1, "layers keep alike: the comparison proves little"


def reading_again_changes_nothing_else(model_name: str) -> None:
    """The prompt's logits are the full cache's, the prompt is seen once, and a full budget changes nothing."""
    tokens = ids(53, 2, PROMPT + NEW)
    full, got, all_of = (
        drive(model(model_name), made, tokens, uniform(rows=2))
        for made in (strategy("baseline"), strategy("kvzip", tokens=BUDGET), strategy("kvzip", tokens=PROMPT))
    )
    assert torch.equal(got.logits[:, :PROMPT], full.logits[:, :PROMPT])
    assert torch.equal(all_of.logits, full.logits)
    assert got.cache.get_seq_length() == PROMPT + NEW
    assert not torch.equal(got.logits, full.logits)


def a_full_safeguard_keeps_heads_alike() -> None:
    """With everything safeguarded, sharing with all layers is sharing with none."""
    made, tokens = strategy("kvzip", "budget.safeguard=1.0", tokens=BUDGET), ids(55, 2, PROMPT + NEW)
    alone = replace(made, budget=Uniform(amount=BUDGET, unit="tokens", skip_layers=()))
    one, two = (drive(model("llama_gqa"), each, tokens, uniform(rows=2)) for each in (made, alone))
    assert_same_held(one.held, two.held)
    assert torch.equal(one.logits, two.logits)


def scores_are_weights() -> None:
    """Scores lie between 0 and 1, and an entry that no query of its chunk needs is near 0."""
    for score in noted("llama_gqa", ids(54, 2, PROMPT), uniform(new=0, rows=2)):
        assert bool(((score >= 0) & (score <= 1)).all())
        assert score.amin() < 0.1 < score.amax()
