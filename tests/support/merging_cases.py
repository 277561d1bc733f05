"""Checks of fixed_size and of CaM, small enough to say what has to come out."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from kvbench.cache.views import Leaving, Observation
from kvbench.strategies.evicted.following import FollowingMerge
from kvbench.strategies.selection.call_attention import CallAttention
from kvbench.types import DECODE
from tests.support import toy
from tests.support.checks import BUDGET, NEW, PROMPT, assert_close
from tests.support.drive import positions, slots_of
from tests.support.merging import GROUPS, LAYER, SCALE, Text, decode, layer_of, method, read, text
from tests.support.models import HEADS, WIDTH
from tests.support.strategies import composed


def truncation_of_the_worked_example() -> None:
    """Six tokens, four stay: by attention, and by attention and recency in halves."""
    toy.prompt_set_is({0, 1, 2, 3}, "fixed_size", "selector.truncation=attention")
    toy.prompt_set_is({0, 1, 4, 5}, "fixed_size", "selector.truncation=hybrid")
    toy.prompt_set_is({2, 3, 4, 5}, "fixed_size", "selector.truncation=hybrid", "selector.split=0")
    toy.prompt_set_is({0, 1, 2, 5}, "fixed_size", "selector.truncation=hybrid", "selector.split=0.8")


def the_newest_entry_stays_while_decoding() -> None:
    """An entry the newest query attends to least is the newest itself, and another one leaves."""
    held = []
    for keeps in ("true", "false"):
        layer = toy.small_layer(composed("fixed_size", "strategy/evicted=drop", f"selector.keeps_newest={keeps}"))
        toy.feed_prompt(layer)
        row = {0: 0.3, 1: 0.19, 2: 0.21, 3: 0.25, 6: 0.05}
        layer.attend(toy.query_of(row), toy.key_of(6), toy.key_of(6), 1.0, DECODE)
        held.append(positions(layer.held_positions()[0]))
    assert held == [[[0, 2, 3, 6]], [[0, 1, 2, 3]]]


def recency_counts_while_decoding() -> None:
    """Half of the entries of a hybrid are always the newest ones."""
    given = text(seed=7)
    layer = layer_of(method("fixed_size", "selector.truncation=hybrid", "strategy/evicted=drop"))
    read(layer, given)
    for seen in range(PROMPT, PROMPT + NEW):
        for kept in positions(layer.held_positions()[0]):
            assert kept[-BUDGET // 2 :] == list(range(seen - BUDGET // 2, seen))
            assert len(kept) == BUDGET
        decode(layer, given, seen + 1)


def calls_are_forgotten_averaged_or_summed() -> None:
    """Two rows of weights on top of a prompt's scores, by hand."""
    prompt, first, second = (torch.tensor(row, dtype=torch.float64) for row in ([2.0, 1.0], [0.2, 0.8], [0.6, 0.4]))
    want = {"none": second, "sum": prompt + first + second, "ema": (prompt * 0.75 + first * 0.25) * 0.75 + second / 4}
    for accumulate, scores in want.items():
        scorer = CallAttention(accumulate=accumulate, decay=0.75, importance_window=0)  # type: ignore[arg-type]
        score = prompt.view(1, 1, 2).clone()
        for weights in (first, second):
            each = torch.stack([weights + 0.1, weights - 0.1])  # of two query heads
            seen = Observation(
                score=score,
                weights=each.view(1, 1, 2, 2),
                position=torch.arange(2, dtype=torch.int32).view(1, 1, 2),
                memory=None,
                step=0,
                layer=0,
            )
            scorer.observe(seen)
        assert_close(score[0, 0], scores)


def the_summary_is_the_mean_of_all_that_left(*overrides: str) -> None:
    """After every step the first slot is the mean of all keys and values not held, however they left."""
    given = text(seed=8, rows=2)
    layer = layer_of(method("fixed_size", *overrides), (PROMPT, PROMPT))
    read(layer, given)
    for seen in range(PROMPT, PROMPT + NEW):
        slots, held = slots_of(layer), layer.held_positions()
        for row in range(2):
            for head in range(GROUPS):
                kept = set(held[row, head % held.shape[1]].tolist())
                gone = [at for at in range(seen) if at not in kept]
                for payload, entries in ((slots.keys, given.key), (slots.values, given.value)):
                    assert_close(payload.read(1)[row, head, 0], entries[row, head, gone].mean(dim=0))
        decode(layer, given, seen + 1)


def a_summary_of_narrow_numbers_is_not_rounded() -> None:
    """In bfloat16 the summary of 1200 keys is their mean, rounded once; late updates would all be lost."""
    count = 1200
    made = method("fixed_size", "strategy/scorer=recency", "selector.truncation=hybrid", "selector.split=0", budget=4)
    layer = layer_of(made, (5,), new=count)
    ramp = torch.linspace(0, 1, count + 5)[None, None, :, None].expand(1, GROUPS, -1, WIDTH).bfloat16()
    query = torch.zeros(1, HEADS, count + 5, WIDTH, dtype=torch.bfloat16)
    given = Text(query=query, key=ramp, value=1 - ramp)
    read(layer, given)
    decode(layer, given)
    slots = slots_of(layer)
    gone = count + 5 - 3  # three entries of the four are tokens
    want = ramp[0, 0, :gone, 0].double().mean()
    assert abs(slots.keys.read(1).double() - want).max() <= float(want) * 2**-8
    assert slots.log_weight is not None
    assert abs(float(slots.log_weight[0, 0, 0]) - math.log(gone)) < 1e-5


# -- CaM ------------------------------------------------------------------------------------------------------------


def certain_merges_conserve_the_sum_of_values() -> None:
    """Where every lot falls (equal scores: a chance of 1) values move on and add up to what they were."""
    given = text(seed=9)
    flat = Text(query=torch.zeros_like(given.query), key=given.key, value=given.value)
    layer = layer_of(
        method("cam", "strategy/scorer=key_norm", "evicted.num_following=4", "strategy/trigger=prefill_end")
    )
    even = Text(query=flat.query, key=torch.nn.functional.normalize(flat.key, dim=-1), value=flat.value)
    read(layer, even)
    slots = slots_of(layer)
    assert_close(slots.values.read(slots.filled).sum(dim=2), given.value[:, :, :PROMPT].sum(dim=2))
    assert_close(slots.keys.read(slots.filled), taken(even.key, layer.held_positions()))


def taken(entries: Tensor, held: Tensor) -> Tensor:
    """Return the entries [B, G, n, D] at positions held [B, G, m]."""
    return entries.gather(2, held.long()[..., None].expand(-1, -1, -1, entries.shape[3]))


def merges_without_a_chance_leave_values_alone() -> None:
    """Entries nobody attended to leave without a trace, among others that somebody did or nobody either."""
    given = text(seed=11)
    index = torch.arange(PROMPT // 2, PROMPT).expand(1, GROUPS, -1)
    for score in (0.0, 1.0):
        scores = torch.zeros(1, GROUPS, PROMPT, dtype=torch.float64)
        scores[:, :, PROMPT // 2 :] = score
        leaving = Leaving(
            keys=given.key[:, :, :PROMPT],
            values=given.value[:, :, :PROMPT],
            position=torch.arange(PROMPT, dtype=torch.int32)[None, None],
            score=scores,
            index=index,
            layer=LAYER,
        )
        merged = FollowingMerge(num_following=4, seed=0).at_prompt_end(leaving)
        assert torch.equal(merged.values, given.value[:, :, PROMPT // 2 : PROMPT])
        assert torch.equal(merged.keys, given.key[:, :, PROMPT // 2 : PROMPT])


def merges_over_seeds_are_as_frequent_as_their_chance(seeds: int = 250) -> None:
    """Over seeds the mean of the values is that of merging in proportion to the chance."""
    given, total = text(seed=10), torch.zeros(())
    made = method("cam", "strategy/trigger=prefill_end", "selector.recent_share=0", "evicted.num_following=4")
    assert isinstance(made.evicted, FollowingMerge)
    for seed in range(seeds):
        layer = layer_of(replace(made, evicted=replace(made.evicted, seed=seed)))
        read(layer, given)
        total = total + slots_of(layer).values.read(BUDGET)
    held = layer.held_positions()
    for head in range(GROUPS):
        kept = held[0, head].tolist()
        score, chances = column_sums_of(given, head), []
        want = {at: given.value[0, head, at].clone() for at in kept}
        spread = torch.zeros(BUDGET, dtype=torch.float64)
        for gone in sorted(set(range(PROMPT)) - set(kept)):
            targets = [at for at in kept if at > gone][:4]
            if not targets:
                continue
            mean = sum(score[at] for at in targets) / len(targets)
            chance = min(1.0, score[gone] / mean)
            chances.append(chance)
            for at in targets:
                want[at] += chance / len(targets) * given.value[0, head, gone]
            share = given.value[0, head, gone].abs().max() / len(targets)
            spread[[kept.index(at) for at in targets]] += chance * (1 - chance) * float(share) ** 2
        assert any(0.1 < chance < 0.9 for chance in chances), "no lot decides anything: the comparison proves nothing"
        got = total[0, head] / seeds
        away = (got - torch.stack([want[at] for at in kept])).abs().amax(dim=-1)
        assert (away <= 5 * (spread / seeds).sqrt() + 1e-9).all()


def column_sums_of(given: Text, head: int) -> list[float]:
    """Return the attention each prompt token receives from a group's queries, averaged over them."""
    share = HEADS // GROUPS
    logits = given.query[0, head * share : (head + 1) * share, :PROMPT] @ given.key[0, head, :PROMPT].T * SCALE
    causal = torch.ones(PROMPT, PROMPT, dtype=torch.bool).tril()
    sums: list[float] = logits.masked_fill(~causal, -torch.inf).softmax(dim=-1).sum(dim=1).mean(dim=0).tolist()
    return sums
