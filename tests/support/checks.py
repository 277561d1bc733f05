"""What must hold for every method. Tests call these on the real parts, the mutant test on broken ones."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from kvbench.cache import plan
from kvbench.cache.kv_cache import KVCache
from kvbench.cache.ragged import RaggedStore
from kvbench.models.view import view_of
from kvbench.strategies.base import CacheStrategy
from kvbench.types import DECODE, RunShape
from tests.support import reference
from tests.support.drive import Driven, drive, padded, positions
from tests.support.models import LAYERS, attention, ids, model, model_for
from tests.support.reference import Rules
from tests.support.strategies import every, rules, settings, strategy

PROMPT, NEW, BUDGET = 24, 12, 12
FEW = 6  # new tokens where one more shows nothing more
EXACT = 1e-10  # float64: what reordering sums can do to logits of size 1, with room to spare


def drive_rows(
    made: CacheStrategy,
    model_name: str,
    lengths: Sequence[int],
    *,
    new: int | None = NEW,
    chunks: Sequence[int] = (),
    steps: Sequence[int] = (),
    dtype: torch.dtype = torch.float64,
) -> Driven:
    """Run a prompt of each length, and NEW tokens behind it, through a cache that was told of `new`."""
    text = padded([ids(50 + row, 1, length + NEW)[0] for row, length in enumerate(lengths)])
    run = RunShape(prompt_lengths=tuple(lengths), new_tokens=new)
    return drive(model(model_name, dtype), made, text, run, chunks=chunks, steps=steps)


def uniform(prompt: int = PROMPT, new: int | None = NEW, rows: int = 1) -> RunShape:
    """Return the shape of a batch of equal rows."""
    return RunShape(prompt_lengths=(prompt,) * rows, new_tokens=new)


def usual(name: str, model_name: str) -> Driven:
    """Return what comes of the usual tokens with a method: prompts at once, then one token at a time."""
    made = strategy(name, tokens=BUDGET)
    return drive(model_for(made, model_name), made, usual_ids(), uniform(rows=2))


usual_once = functools.cache(usual)  # for tests that break nothing
Usual = Callable[[str, str], Driven]


def usual_ids() -> Tensor:
    """Return the usual tokens, of two rows."""
    return ids(5, 2, PROMPT + NEW)


def assert_close(got: Tensor, want: Tensor) -> None:
    """Hold two results together to `EXACT`."""
    torch.testing.assert_close(got, want, rtol=0, atol=EXACT)


def assert_same_held(got: Sequence[Sequence[Tensor]], want: Sequence[Sequence[Tensor]]) -> None:
    """Hold the kept positions of two runs together, at every step and layer."""
    for step, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        for layer, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            for row in range(a.shape[0]):
                assert positions(a[row]) == positions(b[row]), f"step {step}, layer {layer}, row {row}"


def assert_held_is(driven: Driven, row: int, made: reference.Pass) -> None:
    """Hold the kept positions and scores of one row to the reference's, at every step, layer and head."""
    for step, layers in enumerate(driven.held):
        for layer, held in enumerate(layers):
            assert positions(held[row]) == made.held[layer][step], f"step {step}, layer {layer}"
            for mine, theirs in zip(driven.scores[step][layer][row], made.scores[layer][step], strict=False):
                kept = {at: mine[at] for at in theirs}
                assert kept == pytest.approx(theirs, rel=0, abs=EXACT), f"step {step}, layer {layer}"


# -- an evicting cache is a mask ------------------------------------------------------------------------------------


def equals_dense_attention_under_its_mask(
    name: str,
    model_name: str,
    *,
    prompt: int = PROMPT,
    budget: int = BUDGET,
    overrides: Sequence[str] = (),
    changes: Sequence[tuple[str, Any]] = (),
) -> None:
    """GO2: logits and kept positions equal the reference's at every step.

    Args:
        name: of the method.
        model_name: of the model.
        prompt: tokens.
        budget: entries.
        overrides: of the strategy's configuration.
        changes: what they mean in the reference's rules.
    """
    tokens, truth = ids(1, 1, prompt + NEW), dataclasses.replace(rules(name, budget), **dict(changes))
    want, made = reference.run(model_name, tokens, prompt, truth)
    got = drive(model(model_name), strategy(name, *overrides, tokens=budget), tokens, uniform(prompt))
    assert_close(got.logits, want)
    assert_held_is(got, 0, made)
    full, _ = reference.run(model_name, tokens, prompt, Rules(score="none"))
    leaves = prompt > budget or (truth.every_step and prompt + NEW - 1 >= budget + truth.period)
    if name != "baseline" and leaves and model_name != "mistral":  # mistral has sliding layers only
        assert (got.logits - full).abs().max() > 1e-3, "eviction changes nothing here: the comparison proves nothing"


def budget_above_length_is_baseline(name: str, model_name: str, by: Usual = usual) -> None:
    """GO1: bit for bit."""
    base = by("baseline", model_name)
    for budget in (PROMPT + NEW, 500):
        got = drive(model(model_name), strategy(name, tokens=budget), usual_ids(), uniform(rows=2))
        assert torch.equal(got.logits, base.logits)


def baseline_is_the_stock_model(model_name: str) -> None:
    """GO1: the baseline's logits are those of transformers' own sdpa forward."""
    tokens = ids(3, 2, PROMPT + NEW)
    with attention(model(model_name), "sdpa") as stock:
        want = stock(tokens, use_cache=False).logits
    got = drive(model(model_name), strategy("baseline"), tokens, uniform(rows=2))
    assert_close(got.logits, want)


# -- positions ------------------------------------------------------------------------------------------------------


def positions_are_true(name: str, model_name: str, by: Usual = usual) -> None:
    """GO4: the cache counts tokens seen, whatever it holds, and a model that asks it gets the true positions."""
    tokens, made, told = usual_ids(), strategy(name, tokens=BUDGET), by(name, model_name)
    with attention(model_for(made, model_name), "kvbench") as network:
        cache = made.build(view_of(network), uniform(rows=2))
        for start, stop in zip([0, *range(PROMPT, PROMPT + FEW)], range(PROMPT, PROMPT + FEW + 1), strict=True):
            assert cache.get_seq_length() == start
            assert cache.position_ids(stop - start).tolist() == [list(range(start, stop))] * 2
            asked = network(tokens[:, start:stop], past_key_values=cache, use_cache=True).logits
            assert_close(asked, told.logits[:, start:stop])
        assert [cache.get_seq_length(layer) for layer in range(LAYERS)] == [PROMPT + FEW] * LAYERS


def learned_positions_are_ranks(budget: int = BUDGET) -> None:
    """By rank on a model with learned positions, a new token is read at the number of entries held."""
    tokens, seen = ids(4, 1, PROMPT + NEW), []
    made = strategy("attention_sink", tokens=budget)
    driven = drive(
        model("gpt2"), made, tokens, uniform(), watch=lambda cache, _: seen.append(cache.position_ids(1).tolist())
    )
    held = [int((layers[0] >= 0).sum()) for layers in driven.held]
    assert seen == [[[entries]] for entries in held]


# -- the same by another route --------------------------------------------------------------------------------------


def many_tokens_equal_one_by_one(
    name: str, model_name: str, steps: Sequence[int] = (5, 1, 4, 2), by: Usual = usual
) -> None:
    """GO5: a decode pass over several tokens is as many passes over one."""
    made, one = strategy(name, tokens=BUDGET), by(name, model_name)
    many = drive(model_for(made, model_name), made, usual_ids(), uniform(rows=2), steps=steps)
    assert_close(many.logits, one.logits)
    ends = [sum(steps[:count]) for count in range(len(steps) + 1)]
    assert_same_held(many.held, [one.held[end] for end in ends])


def chunks_equal_one_shot(name: str, model_name: str, chunks: Sequence[int] = (7, 1, 13, 3), by: Usual = usual) -> None:
    """A prompt read in pieces is the prompt read at once."""
    made, whole = strategy(name, tokens=BUDGET), by(name, model_name)
    parts = drive(model_for(made, model_name), made, usual_ids(), uniform(rows=2), chunks=chunks)
    assert_close(parts.logits, whole.logits)
    assert_same_held(parts.held, whole.held)
    assert parts.cache.allocated_bytes() == whole.cache.allocated_bytes()


def padded_rows_equal_rows_alone(
    name: str, model_name: str, *, by_ratio: bool, chunks: Sequence[int] = (), period: int = 1
) -> None:
    """GO7: each row of a left-padded batch gets what it gets alone, and at once what the reference gives it."""
    overrides = ("budget.unit=ratio", "budget.amount=0.6") if by_ratio else ("budget.unit=tokens", "budget.amount=12")
    lengths = (17, PROMPT, 9)
    texts = [ids(7 + row, 1, length + NEW)[0] for row, length in enumerate(lengths)]
    made = strategy(name, *(every(period) if period > 1 else ()), *(overrides if name != "baseline" else ()))
    run = RunShape(prompt_lengths=lengths, new_tokens=NEW)
    batch = drive(model_for(made, model_name), made, padded(texts), run, chunks=chunks)
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        alone = drive(model_for(made, model_name), made, text[None], uniform(length))
        pad = PROMPT - length
        assert_close(batch.logits[row, pad:], alone.logits[0])
        assert_same_held([[held[row : row + 1] for held in step] for step in batch.held], alone.held)
        if chunks:
            continue
        entries = length * 3 // 5 if by_ratio else BUDGET
        given = rules(name, entries)
        given = dataclasses.replace(given, period=period, every_step=given.every_step or period > 1)
        want, truth = reference.run(model_name, text[None], length, given)
        assert_close(batch.logits[row, pad:], want[0])
        assert_held_is(batch, row, truth)


def second_sequence_is_fresh(name: str, model_name: str, by: Usual = usual) -> None:
    """GO8: a strategy leaves nothing behind for the next sequence, nor for one beside it."""
    made, before = strategy(name, tokens=BUDGET), by(name, model_name)
    drive(model_for(made, model_name), made, ids(8, 2, PROMPT + FEW), uniform(rows=2))
    after = drive(model_for(made, model_name), made, usual_ids()[:, : PROMPT + FEW], uniform(rows=2))
    assert torch.equal(before.logits[:, : PROMPT + FEW], after.logits)
    assert_same_held(after.held, before.held[: FEW + 1])


def protected_entries_stay(name: str, model_name: str, sinks: int = 2, recent: int = 3) -> None:
    """GO11: the first and the newest entries are held at every step of every layer and head."""
    tokens = ids(10, 1, PROMPT + NEW)
    more = (f"selector.num_sink={sinks}", f"selector.num_recent={recent}")
    made = strategy(name, *more, tokens=BUDGET)
    driven = drive(model_for(made, model_name), made, tokens, uniform())
    for step, layers in enumerate(driven.held):
        newest = PROMPT - 1 + step
        must = {*range(sinks), *range(newest - recent + 1, newest + 1)}
        for held in layers:
            assert all(must <= set(kept) for kept in positions(held[0]))


def restore_is_exact(
    name: str,
    model_name: str,
    lengths: Sequence[int] = (PROMPT, PROMPT),
    new: int | None = NEW,
    overrides: Sequence[str] = (),
    snapshots: Sequence[int] = (0, 4),
) -> None:
    """After `restore` the same steps give the same bits, in the same storage, as often as one likes."""
    texts = [ids(11 + row, 1, length + NEW)[0] for row, length in enumerate(lengths)]
    tokens, made = padded(texts), strategy(name, *overrides, tokens=BUDGET)
    run = RunShape(prompt_lengths=tuple(lengths), new_tokens=new)
    for taken_after in snapshots:
        steps = range(max(lengths) + taken_after, max(lengths) + taken_after + FEW)
        with attention(model_for(made, model_name), "kvbench") as network:
            cache = drive(network, made, tokens[:, : steps.start], run).cache
            saved, runs = cache.snapshot(), []
            addresses = [t.data_ptr() for layer in cache.layers for t in layer.tensors()]
            for _ in range(3):
                logits = []
                for at in steps:
                    cache.begin(DECODE)
                    where = cache.position_ids(1)
                    out = network(tokens[:, at : at + 1], past_key_values=cache, use_cache=True, position_ids=where)
                    logits.append(out.logits)
                runs.append((torch.cat(logits, dim=1), [layer.held_positions() for layer in cache.layers]))
                cache.restore(saved)
                assert cache.get_seq_length() == steps.start
        for logits_again, held_again in runs[1:]:
            assert torch.equal(logits_again, runs[0][0])
            assert_same_held([held_again], [runs[0][1]])
        assert addresses == [t.data_ptr() for layer in cache.layers for t in layer.tensors()]


def growing_equals_fixed(name: str, model_name: str) -> None:
    """A cache of unknown length gives the same logits and never holds more than a quarter, or a few, entries too many.

    Few are 4 here, so that room is made several times.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "GROW_LEAST", 4)
        _growing_equals_fixed(name, model_name, new=16, most=PROMPT // 4)


def _growing_equals_fixed(name: str, model_name: str, *, new: int, most: int) -> None:
    tokens, made = ids(12, 1, PROMPT + new), strategy(name, tokens=BUDGET)
    steps = (3,) + (1,) * (new - 3)
    fixed = drive(model_for(made, model_name), made, tokens, uniform(new=new), steps=steps)
    sizes: list[int] = []

    def watch(cache: KVCache, seen: int) -> None:
        for layer in cache.layers:
            for _, store in layer.stores:
                slots = store.slots
                if isinstance(store, RaggedStore):
                    is_there = store.slots.position >= 0
                    assert slots.capacity <= 1.25 * is_there.sum() + most * is_there[..., 0].numel()
                else:
                    assert slots.capacity <= 1.25 * slots.filled + most
                    assert slots.position.shape[2] == slots.capacity
                sizes.append(slots.capacity)

    growing = drive(model_for(made, model_name), made, tokens, uniform(new=None), steps=steps, watch=watch)
    assert_close(growing.logits, fixed.logits)
    assert_same_held(growing.held, fixed.held)
    if made.trigger.period == 0 and settings()[name].keeps:
        assert len(set(sizes)) > 1, "nothing grew: the comparison proves nothing"


def begin_is_optional(name: str, model_name: str) -> None:
    """Without `begin` the first pass is the prompt and every later one decodes, as in transformers' generate."""
    tokens, made = ids(13, 1, PROMPT + 2), strategy(name, tokens=BUDGET)
    told = drive(model_for(made, model_name), made, tokens, uniform())
    with attention(model_for(made, model_name), "kvbench") as network:
        cache = made.build(view_of(network), uniform())
        for start, stop in ((0, PROMPT), (PROMPT, PROMPT + 1), (PROMPT + 1, PROMPT + 2)):
            where = cache.position_ids(stop - start)
            out = network(tokens[:, start:stop], past_key_values=cache, use_cache=True, position_ids=where)
    assert torch.equal(out.logits, told.logits[:, -1:])
