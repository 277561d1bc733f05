"""Checks of methods that merge: against plain loops over one layer, and by what merging must leave alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.layer import CacheLayer
from kvbench.models.view import view_of
from kvbench.strategies.base import CacheStrategy
from kvbench.types import DECODE, PREFILL, PREFILL_CHUNK, RunShape
from tests.support.checks import BUDGET, NEW, PROMPT, assert_close
from tests.support.drive import positions, slots_of
from tests.support.models import HEADS, WIDTH, model
from tests.support.slow_layer import MergeRules, SlowLayer
from tests.support.slow_merging import MERGES, drop
from tests.support.strategies import composed

GROUPS, SCALE, LAYER = 2, 0.5, 1
LENGTHS = (PROMPT, 17)  # of two rows, the second padded on the left
PART = {"summary": "Summary", "nearest": "NearestMerge", "following": "FollowingMerge"}
PART |= {"runs": "RunMerge", "residual": "Residual", "drop": "Drop"}


@dataclass(frozen=True, kw_only=True)
class Text:
    """Queries [B, H, T, D], keys and values [B, G, T, D] of one layer.

    Args:
        query: of every token.
        key: of every token; neighbours are alike.
        value: of every token.
    """

    query: Tensor
    key: Tensor
    value: Tensor

    def tokens(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of some columns."""
        return self.query[:, :, start:stop], self.key[:, :, start:stop], self.value[:, :, start:stop]


def text(seed: int = 0, rows: int = 1, tokens: int = PROMPT + NEW, likeness: float = 0.75) -> Text:
    """Return random numbers in which each key is made of the one before it and of something new."""
    generator = torch.Generator().manual_seed(seed)

    def draw(heads: int) -> Tensor:
        return torch.randn(rows, heads, tokens, WIDTH, generator=generator, dtype=torch.float64)

    query, fresh, value = draw(HEADS), draw(GROUPS), draw(GROUPS)
    keys = [fresh[:, :, 0]]
    for at in range(1, tokens):
        keys.append(likeness * keys[-1] + math.sqrt(1 - likeness**2) * fresh[:, :, at])
    return Text(query=query * 2, key=torch.stack(keys, dim=2), value=value)


def method(name: str, *overrides: str, budget: int = BUDGET) -> CacheStrategy:
    """Return a method with a budget in tokens, the same in every layer, because a layer here is on its own."""
    return composed(name, "strategy/budget=uniform", "budget.unit=tokens", f"budget.amount={budget}", *overrides)


def layer_of(made: CacheStrategy, lengths: Sequence[int] = (PROMPT,), new: int | None = NEW) -> CacheLayer:
    """Return an empty layer of the method, of four query heads and two KV heads."""
    run = RunShape(prompt_lengths=tuple(lengths), new_tokens=new)
    plan = made.plans(view_of(model("llama_gqa")), run)[LAYER]
    padding = torch.tensor(run.padding, dtype=torch.int32)[:, None, None] if any(run.padding) else None
    return CacheLayer(plan, run, padding, torch.empty(0, dtype=torch.float64))


def read(layer: CacheLayer, given: Text, chunks: Sequence[int] = ()) -> None:
    """Read the prompt."""
    at, ends = 0, chunks or (layer.run.prompt_tokens,)
    for tokens in ends:
        step = PREFILL if at + tokens == layer.run.prompt_tokens else PREFILL_CHUNK
        layer.attend(*given.tokens(at, at + tokens), SCALE, step)
        at += tokens


def decode(layer: CacheLayer, given: Text, stop: int | None = None) -> Tensor:
    """Read what follows, one token at a time; return the outputs [B, H, T, D]."""
    last = given.key.shape[2] if stop is None else stop
    outs = [layer.attend(*given.tokens(at, at + 1), SCALE, DECODE) for at in range(layer.seen, last)]
    return torch.cat(outs, dim=2)


# -- plain loops ----------------------------------------------------------------------------------------------------


def rules_of(made: CacheStrategy, budget: int) -> MergeRules:
    """Return the rules of a method, read off its configuration."""
    evicted, selector, scorer = made.evicted, made.selector, made.scorer
    (part,) = [name for name, kind in PART.items() if type(evicted).__name__ == kind]
    given: dict[str, Any] = vars(evicted)
    keeps_newest = getattr(selector, "keeps_newest", False)

    def recent(entries: int) -> int:
        if getattr(selector, "truncation", "") == "attention":
            return 0
        share = Fraction(str(vars(selector).get("split", vars(selector)["recent_share"])))
        return entries - int(share * entries) if hasattr(selector, "split") else int(share * entries)

    return MergeRules(
        merge=drop if part == "drop" else MERGES[part](**given),
        reserved={"summary": 1, "residual": given.get("num_entries", 0)}.get(part, 0),
        budget=budget,
        period=made.trigger.period,
        sinks=selector.num_sink,
        recent=recent,
        keeps_newest=keeps_newest,
        accumulate=getattr(scorer, "accumulate", "sum" if scorer.per_head else "none"),
        decay=getattr(scorer, "decay", 0.0),
        last_only=not scorer.per_head,
    )


def merging_equals_plain_loops(name: str, *overrides: str, budget: int = BUDGET, chunks: Sequence[int] = ()) -> None:
    """Outputs and kept positions of two rows, one of them padded, are those of lists of entries."""
    made, given = method(name, *overrides, budget=budget), text(seed=len(name), rows=len(LENGTHS))
    layer = layer_of(made, LENGTHS)
    read(layer, given, chunks)
    held, outs = [layer.held_positions()], []
    for at in range(PROMPT, PROMPT + NEW):
        outs.append(decode(layer, given, at + 1))
        held.append(layer.held_positions())
    for row, length in enumerate(LENGTHS):
        pad = PROMPT - length
        slow = SlowLayer(rules_of(made, budget), SCALE, LAYER, HEADS // GROUPS)
        slow.prompt(given.query[row, :, pad:PROMPT], given.key[row, :, pad:PROMPT], given.value[row, :, pad:PROMPT])
        for step, at in enumerate(range(PROMPT, PROMPT + NEW)):
            assert_same_positions(held[step][row], slow.held(), f"row {row}, step {step}")
            want = slow.step(given.query[row, :, at], given.key[row, :, at], given.value[row, :, at], at - pad)
            assert_close(outs[step][row, :, 0], want)


def assert_same_positions(held: Tensor, want: list[list[int]], where: str) -> None:
    """Hold the kept positions of a row [1 or G, m] to lists per head."""
    mine = positions(held)
    assert (mine * len(want) if len(mine) == 1 else mine) == want, where


# -- identities -----------------------------------------------------------------------------------------------------


def outputs(made: CacheStrategy, given: Text) -> Tensor:
    """Return the outputs of the decoded tokens [B, H, T, D]."""
    layer = layer_of(made, (PROMPT,) * given.key.shape[0])
    read(layer, given)
    return decode(layer, given)


def equals_dropping(name: str, *overrides: str) -> None:
    """With these settings nothing merges, and the outputs are those of dropping bit for bit."""
    given = text(seed=2, rows=2)
    assert torch.equal(outputs(method(name, *overrides), given), outputs(method(name, "strategy/evicted=drop"), given))
    assert not torch.equal(outputs(method(name), given), outputs(method(name, "strategy/evicted=drop"), given))


def equal_entries_merge_without_a_trace(name: str, *overrides: str) -> None:
    """A text that repeats one key and one value: whatever merges into an entry, it stays as it was."""
    given = text(seed=4)
    same = Text(
        query=given.query,
        key=given.key[:, :, :1].expand_as(given.key),
        value=given.value[:, :, :1].expand_as(given.value),
    )
    layer = layer_of(method(name, *overrides))
    read(layer, same)
    decode(layer, same)
    slots = slots_of(layer)
    for payload, row in ((slots.keys, same.key), (slots.values, same.value)):
        stored = payload.read(slots.filled)
        assert_close(stored, row[:, :, :1].expand_as(stored))


def a_summary_of_equal_entries_is_exact(name: str, *overrides: str) -> None:
    """Where everything that leaves is the same, attention is as if it had never left, and otherwise it is not."""
    given = text(seed=5)
    first = slice(0, PROMPT // 2)
    key, value = given.key.clone(), given.value.clone()
    key[:, :, first], value[:, :, first] = key[:, :, :1], value[:, :, :1]
    settings = ("strategy/scorer=recency", "strategy/trigger=every_step", *overrides)
    budget = PROMPT // 2 + 3 + method(name, *settings).evicted.num_reserved
    made, same = method(name, *settings, budget=budget), Text(query=given.query, key=key, value=value)
    full = layer_of(composed("baseline"))
    read(full, same)
    layer = layer_of(made)
    read(layer, same)
    stop = PROMPT + 3  # so many later tokens let the last of the equal ones leave, and no other
    want = decode(full, same, stop)
    assert_close(decode(layer, same, stop), want)
    dropped = layer_of(method(name, *settings[:2], "strategy/evicted=drop", budget=budget))
    read(dropped, same)
    assert (decode(dropped, same, stop) - want).abs().max() > 1e-3


def tokens_are_counted_once(name: str, *overrides: str) -> None:
    """The numbers of tokens that entries stand for add up to the tokens seen, at every step."""
    given = text(seed=6)
    layer = layer_of(method(name, *overrides))
    read(layer, given)
    for seen in range(PROMPT, PROMPT + NEW):
        slots = slots_of(layer)
        assert slots.log_weight is not None
        kept = slots.position[:, :, : slots.filled] != -1
        free = torch.zeros_like(kept)
        ((_, store),) = layer.stores
        if isinstance(store._free, Tensor):
            free.scatter_(2, store._free[:, :, None], True)
        total = (slots.log_weight[:, :, : slots.filled].exp() * (kept & ~free)).sum(dim=-1)
        assert_close(total, torch.full_like(total, seen))
        decode(layer, given, seen + 1)
