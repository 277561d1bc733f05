"""Oracles of the methods that treat heads differently: HeadKV, DuoAttention, RazorAttention, FastGen."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from kvbench.models.view import view_of
from kvbench.types import RunShape
from tests.support import reference
from tests.support.checks import BUDGET, NEW, PROMPT, assert_close, assert_held_is, uniform
from tests.support.drive import drive, positions
from tests.support.head_scores import folder, write
from tests.support.models import LAYERS, ids, model
from tests.support.reference import Rules
from tests.support.strategies import strategy

SINKS, RECENT = 2, 6  # of a streaming head, as `tests.support.settings.heads` says
Table = list[list[float]]


def with_scores(path: str | Path, name: str, kind: str, **tables: Table) -> str:
    """Write scores and return the override that finds them."""
    return f"budget.scores='{write(Path(path), name, kind, tables)}'"


def heads_of(name: str) -> int:
    """Return the KV heads of a model's layers."""
    return view_of(model(name)).layers[0].kv_heads


def lots(name: str, seed: int, digits: int = 2) -> Table:
    """Return scores drawn by lot; with few digits some are equal."""
    rng = random.Random(seed)
    return [[round(rng.random(), digits) for _ in range(heads_of(name))] for _ in range(LAYERS)]


# -- HeadKV ---------------------------------------------------------------------------------------------------------


def the_worked_pool() -> None:
    """HeadKV: scores .4 .3 .2 .1 share half of eight entries each: 10, 9, 7 and 6, with the window on top."""
    with TemporaryDirectory() as path:
        found = with_scores(path, "llama_mha", "retrieval", retrieval=[[0.4, 0.3, 0.2, 0.1], [1.0, 0.0, 0.0, 0.0]])
        made = strategy("headkv", "budget.skip_layers=[1]", "budget.beta=2", found, tokens=8 + 4)
        first, second = made.plans(view_of(model("llama_mha")), uniform())
    assert first.counts == (tuple(4 + entries for entries in (10, 9, 7, 6)),)
    assert (second.counts, second.budget) == (None, None)


def pools() -> Iterator[tuple[str, Table, int, float, float]]:
    """Yield models, scores, amounts, betas and temperatures."""
    for seed, name in enumerate(("llama_mha", "llama_gqa", "gpt2") * 4):
        rng = random.Random(seed)
        yield name, lots(name, seed), rng.randrange(4, 24), rng.choice([1, 1.005, 2, 10]), rng.choice([0, 0.5, 1, 3])


def the_pool_is_exact() -> None:
    """HeadKV: all heads of all layers together keep the amount, each its own part and its share to within one."""
    capped = 0
    for name, table, amount, beta, temperature in pools():
        with TemporaryDirectory() as path:
            found = with_scores(path, name, "retrieval", retrieval=table)
            more = (f"budget.beta={beta}", f"budget.temperature={temperature}", found)
            made = strategy("headkv", *more, tokens=amount)
            plans = made.plans(view_of(model(name)), RunShape(prompt_lengths=(PROMPT, 17), new_tokens=NEW))
        for row, length in enumerate((PROMPT, 17)):
            counts = [int(count or 0) for plan in plans for count in (plan.counts or ())[row]]
            assert sum(counts) == amount * LAYERS * heads_of(name)
            if amount >= length:
                assert set(counts) == {amount}
                continue
            pooled = math.floor((amount - 4) / Fraction(str(beta)))
            weights = [score**temperature for layer in table for score in layer]
            shares = [amount - pooled + pooled * len(counts) * weight / sum(weights) for weight in weights]
            assert all(amount - pooled <= count <= length for count in counts)
            if max(shares) > length - 1:
                capped += 1
            else:
                assert all(abs(count - share) < 1 for count, share in zip(counts, shares, strict=True))
    assert capped > 0, "no head was ever given more than there is"


def uniform_scores_are_snapkv() -> None:
    """HeadKV: when no head retrieves more than another it is SnapKV bit for bit, and else it is not."""
    name, tokens = "llama_gqa", ids(91, 2, PROMPT + NEW)
    same = ("scorer.window=4", "scorer.kernel=3", "scorer.pooling=max")
    want = drive(model(name), strategy("snapkv", *same, tokens=BUDGET), tokens, uniform(rows=2)).logits
    with TemporaryDirectory() as path:
        for table, equal in (([[0.3] * 2] * 2, True), ([[0.0] * 2] * 2, True), ([[0.3, 0.1], [0.1, 0.1]], False)):
            made = strategy("headkv", with_scores(path, name, "retrieval", retrieval=table), tokens=BUDGET)
            got = drive(model(name), made, tokens, uniform(rows=2)).logits
            assert torch.equal(got, want) == equal


def headkv_equals_dense_attention_per_head(name: str) -> None:
    """HeadKV: logits and kept sets are those of dense attention with its own number of entries per head."""
    made, tokens = strategy("headkv", tokens=BUDGET), ids(92, 1, PROMPT + NEW)
    plans = made.plans(view_of(model(name)), uniform())
    heads = tuple((plan.counts or ())[0] for plan in plans)
    assert len({count for layer in heads for count in layer}) > 2, "heads do not differ: this proves nothing"
    truth = Rules(score="window", every_step=False, window=4, kernel=3, pooling="max", recent=4, heads=heads)
    want, kept = reference.run(name, tokens, PROMPT, truth)
    got = drive(model(name), made, tokens, uniform())
    assert_close(got.logits, want)
    assert_held_is(got, 0, kept)


# -- DuoAttention ---------------------------------------------------------------------------------------------------


def gates_choose_heads() -> None:
    """DuoAttention: heads at or above the quantile of the gates keep everything, and none whose gate is 0."""
    for seed, name in enumerate(("llama_mha", "gpt2", "llama_gqa") * 5):
        table, sparsity = lots(name, seed, digits=1), random.Random(seed).choice([0.1, 0.25, 0.5, 0.7, 0.9])
        threshold = np.quantile(np.array(table), sparsity)
        want = [[gate >= threshold - 1e-12 and gate > 0 for gate in layer] for layer in table]
        assert full_heads("duoattention", name, f"budget.sparsity={sparsity}", kind="gate", gate=table) == want
    some = [[0.0, 0.2], [0.0, 0.9]]
    for share, want in ((0, [[True, True]] * 2), (1, [[False, False]] * 2), (0.3, [[False, True]] * 2)):
        assert full_heads("duoattention", "llama_gqa", f"budget.sparsity={share}", kind="gate", gate=some) == want


def full_heads(method: str, name: str, *overrides: str, kind: str, **tables: Table) -> list[list[bool]]:
    """Return which heads of each layer a method lets keep everything."""
    with TemporaryDirectory() as path:
        made = strategy(method, *overrides, with_scores(path, name, kind, **tables))
        plans = made.plans(view_of(model(name)), uniform())
    every = [True] * heads_of(name)
    return [every if plan.counts is None else [count is None for count in plan.counts[0]] for plan in plans]


def streaming_heads_keep_sinks_and_recent(name: str, method: str = "duoattention") -> None:
    """DuoAttention: at every step the chosen heads hold everything, the others two sinks and six recent tokens."""
    made, lengths = strategy(method, f"budget.scores='{folder()}'"), (PROMPT, 17)
    tokens = torch.stack([torch.nn.functional.pad(ids(93, 1, n + NEW)[0], (PROMPT - n, 0)) for n in lengths])
    run = RunShape(prompt_lengths=lengths, new_tokens=NEW)
    plans = made.plans(view_of(model(name)), run)
    driven, seen = drive(model(name), made, tokens, run), set()
    for step, layers in enumerate(driven.held):
        for plan, held in zip(plans, layers, strict=True):
            for row, length in enumerate(lengths):
                total = length + step
                short = [*range(SINKS), *range(total - RECENT, total)]
                counts = [None] * heads_of(name) if plan.counts is None else plan.counts[row]
                want = [list(range(total)) if count is None else short for count in counts]
                seen |= {count is None for count in counts}
                assert positions(held[row].expand(len(want), -1)) == want
    assert seen == {True, False}, "all heads are of one kind: this proves nothing"


def streams_follow_the_prompt() -> None:
    """DuoAttention: a streaming head keeps so many tokens or so large a part of the row's prompt, whichever is more."""
    made = strategy("duoattention", f"budget.scores='{folder()}'", "budget.recent_share=0.5")
    plans = made.plans(view_of(model("llama_mha")), RunShape(prompt_lengths=(PROMPT, 10), new_tokens=NEW))
    counts = {count for plan in plans for count in (plan.counts or ((),))[0] if count is not None}
    short = {count for plan in plans for count in (plan.counts or ((), ()))[1] if count is not None}
    assert (counts, short) == ({SINKS + PROMPT // 2}, {SINKS + RECENT})


def all_gates_open_is_the_full_cache(name: str) -> None:
    """DuoAttention: with all gates at 1 it is the full cache bit for bit, bytes included."""
    tokens, base = ids(94, 2, PROMPT + NEW), strategy("baseline")
    with TemporaryDirectory() as path:
        found = with_scores(path, name, "gate", gate=[[1.0] * heads_of(name)] * LAYERS)
        made = strategy("duoattention", found)
        got, want = (drive(model(name), method, tokens, uniform(rows=2)) for method in (made, base))
        assert torch.equal(got.logits, want.logits)
        assert got.cache.allocated_bytes() == want.cache.allocated_bytes()


def all_gates_shut_is_sinks_and_recent(name: str) -> None:
    """DuoAttention: with all gates at 0 it is the sink method with original positions, bit for bit."""
    tokens = ids(95, 2, PROMPT + NEW)
    sinks = strategy("attention_sink", "selector.num_sink=2", "strategy/position=original", tokens=SINKS + RECENT)
    with TemporaryDirectory() as path:
        made = strategy("duoattention", with_scores(path, name, "gate", gate=[[0.0] * heads_of(name)] * LAYERS))
        got, want = (drive(model(name), method, tokens, uniform(rows=2)) for method in (made, sinks))
    assert torch.equal(got.logits, want.logits)
    assert got.cache.allocated_bytes() == want.cache.allocated_bytes()


# -- RazorAttention -------------------------------------------------------------------------------------------------


def repetition_chooses_heads() -> None:
    """RazorAttention: the best heads by induction and the best by echo keep everything, at least one of each."""
    for seed, name in enumerate(("llama_mha", "gpt2", "llama_gqa") * 3):
        rng = random.Random(seed)
        induction, echo = (lots(name, 2 * seed + more, digits=6) for more in (0, 1))
        shares = (rng.choice([0.0, 0.14, 0.3]), rng.choice([0.0, 0.01, 0.5]))
        want = [[False] * heads_of(name) for _ in range(LAYERS)]
        for table, share in zip((induction, echo), shares, strict=True):
            order = sorted(((score, layer, head) for layer, row in enumerate(table) for head, score in enumerate(row)))
            number = next(k for k in range(len(order) + 1) if k >= share * len(order) - 1e-9)
            for _, layer, head in order[len(order) - number :]:
                want[layer][head] = True
        more = (f"budget.induction_share={shares[0]}", f"budget.echo_share={shares[1]}")
        got = full_heads("razorattention", name, *more, kind="repetition", echo=echo, induction=induction)
        assert got == want


def without_a_summary_it_is_duoattention() -> None:
    """RazorAttention: with the same heads and nothing made of what leaves it is DuoAttention, and else it is not."""
    name, tokens = "llama_mha", ids(96, 1, PROMPT + NEW)
    with TemporaryDirectory() as path:
        best: Table = [[0.0, 0.9, 0.0, 0.0], [0.0, 0.0, 0.8, 0.0]]
        gates = with_scores(path, name, "gate", gate=best)
        found = with_scores(path, name, "repetition", induction=best, echo=[[0.0] * 4] * 2)
        shares = ("budget.induction_share=0.25", "budget.echo_share=0", found)
        duo, drops, razor = (
            drive(model(name), made, tokens, uniform()).logits
            for made in (
                strategy("duoattention", gates),
                strategy("razorattention", *shares, "strategy/evicted=drop"),
                strategy("razorattention", *shares),
            )
        )
    assert torch.equal(drops, duo)
    assert (razor - duo).abs().max() > 1e-3


METHODS: Sequence[str] = ("HeadKV", "DuoAttention", "RazorAttention", "FastGen", "Head scores")
