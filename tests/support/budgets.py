"""Checks of how layers and heads share a budget, against plain loops and against methods they have to equal."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.views import Scored
from kvbench.models.view import view_of
from kvbench.strategies.base import CacheStrategy
from kvbench.types import ModelView, RunShape
from tests.support.checks import BUDGET, NEW, PROMPT, assert_same_held, uniform
from tests.support.drive import drive, padded, positions
from tests.support.models import ids, model
from tests.support.scores import Spy
from tests.support.strategies import strategy

NOTHING: Mapping[str, int] = {}
SAME_SCORES = ("scorer.window=4", "scorer.kernel=3", "scorer.pooling=max")


def wide(layers: int) -> ModelView:
    """Return the view of a model with so many layers."""
    shape = view_of(model("llama_gqa"))
    return replace(shape, layers=shape.layers[:1] * layers)


def budgets(made: CacheStrategy, layers: int, lengths: Sequence[int] = (4096,)) -> list[tuple[int, ...]]:
    """Return the entries per layer and row."""
    plans = made.plans(wide(layers), RunShape(prompt_lengths=tuple(lengths), new_tokens=NEW))
    return [plan.budget or () for plan in plans]


def altered(made: CacheStrategy, budget: Mapping[str, Any], selector: Mapping[str, int] = NOTHING) -> CacheStrategy:
    """Return a strategy with other numbers in its budget and selector: faster than another yaml."""
    limited = replace(made.budget, **budget)  # type: ignore[type-var]
    return replace(made, budget=limited, selector=replace(made.selector, **selector))  # type: ignore[type-var]


def pyramid(mean: int, window: int, steepness: float, *ratios: float) -> CacheStrategy:
    """Return PyramidKV with so many entries on average."""
    numbers = {"amount": mean, "steepness": steepness, "layer_ratios": ratios}
    return altered(strategy("pyramidkv", tokens=BUDGET), numbers, {"num_recent": window})


def ada(mean: int, safeguard: str, recent: int, sinks: int = 0) -> CacheStrategy:
    """Return AdaKV with so many entries on average."""
    numbers = {"amount": mean, "safeguard": float(safeguard)}
    return altered(strategy("adakv", tokens=BUDGET), numbers, {"num_recent": recent, "num_sink": sinks})


# -- PyramidKV ------------------------------------------------------------------------------------------------------


def steps_of_the_paper() -> None:
    """PyramidKV: two worked examples, the window on top of the steps."""
    got = [kept for (kept,) in budgets(pyramid(8, 2, 3), layers=4)]
    assert got == [12, 9, 7, 4]
    assert sum(entries - 2 for entries in got) == 24
    got = [kept - 8 for (kept,) in budgets(pyramid(128, 8, 20), layers=32)]
    assert (got[0], got[-1], sum(got)) == (234, 6, 3840)
    capped = [kept for (kept,) in budgets(pyramid(8, 2, 3), layers=4, lengths=(10,))]
    assert capped == [10, 9, 7, 6], "the first layer keeps the whole prompt"


def layers_add_up_and_never_rise() -> None:
    """PyramidKV: whatever the numbers, every row adds up, follows its line to within one and fits its prompt."""
    lots = random.Random(0)
    for _ in range(200):
        layers, window, mean = lots.randint(1, 9), lots.randint(1, 5), lots.randint(6, 40)
        steepness, lengths = lots.choice([1.0, 1.5, 2.0, 20.0]), [lots.randint(5, 90) for _ in range(3)]
        kept = budgets(pyramid(mean, window, steepness), layers, lengths)
        for row, length in enumerate(lengths):
            got = [layer[row] for layer in kept]
            assert sum(got) == layers * mean
            assert got == sorted(got, reverse=True)
            if length <= mean:
                assert set(got) == {mean}
                continue
            free = mean - window
            low = free / steepness
            high = 2 * free - low
            if high > length - window:
                high, low = length - window, 2 * free - (length - window)
            line = [high - (high - low) * at / (layers - 1) for at in range(layers)] if layers > 1 else [free]
            assert all(abs(entries - window - want) < 1 for entries, want in zip(got, line, strict=True))
            assert max(got) <= length


def a_flat_pyramid_is_snapkv_bit_for_bit() -> None:
    """PyramidKV of steepness 1 is SnapKV."""
    same("pyramidkv", ("budget.steepness=1.0",), "snapkv", ())


def layers_follow_ratios() -> None:
    """PyramidKV: explicit ratios share what the steps would have shared, up to the length of the prompt."""
    made = pyramid(8, 2, 20, 5, 0, 2.5, 2.5)
    assert [kept for (kept,) in budgets(made, layers=4)] == [14, 2, 8, 8]
    assert [kept for (kept,) in budgets(made, layers=4, lengths=(11,))] == [11, 3, 9, 9]
    skipping = altered(made, {"skip_layers": (1,)})
    assert budgets(skipping, layers=4) == [(11,), (), (7,), (6,)]


def a_pyramid_of_bytes_is_within_them() -> None:
    """PyramidKV in bytes: as many entries as fit, whether rows differ or nobody knows how many tokens follow."""
    network = model("llama_gqa")
    view = view_of(network)
    for lengths, new in itertools.product([(PROMPT,), (PROMPT, PROMPT), (PROMPT, 15)], [NEW, None]):
        run = RunShape(prompt_lengths=lengths, new_tokens=new)
        for each in (12_000, 13_501, 14_400) if new is not None else (39_000, 40_001, 42_000):
            limited = each * len(lengths)
            made = altered(pyramid(1, 4, 2.0), {"unit": "bytes", "amount": limited})
            kept = [plan.budget for plan in made.plans(view, run)]
            assert made.allocated_bytes(view, run) <= limited
            tokens = padded([ids(40 + row, 1, length + 1)[0] for row, length in enumerate(lengths)])
            driven = drive(network, made, tokens[:, : max(lengths)], run)
            assert driven.cache.allocated_bytes() == made.allocated_bytes(view, run)
            assert kept[0] != kept[1], "nothing is steep here: the comparison proves nothing"


def bytes_are_used_up() -> None:
    """PyramidKV in bytes: an entry more on average would not fit."""
    view, run = view_of(model("llama_gqa")), uniform(rows=2)
    slots = sum(plan.room_bytes(1, run, view.dtype) for plan in strategy("pyramidkv", tokens=BUDGET).plans(view, run))
    for amount in range(24_000, 25_000, 37):
        made = altered(pyramid(1, 4, 2.0), {"unit": "bytes", "amount": amount})
        assert 0 <= amount - made.allocated_bytes(view, run) < 2 * slots


# -- AdaKV ----------------------------------------------------------------------------------------------------------


def scored(made: CacheStrategy, score: Tensor, lengths: Sequence[int], statistic: Tensor | None = None) -> Scored:
    """Return a layer of padded rows with given scores [B, G, n], as a sharer sees it."""
    run = RunShape(prompt_lengths=tuple(lengths), new_tokens=NEW)
    plan = made.plans(wide(1), run)[0]
    padding = torch.tensor(run.padding)[:, None, None]
    position = (torch.arange(score.shape[2]) - padding).clamp(min=-1)
    return Scored(plan=plan, score=score, position=position, statistic=statistic, lengths=tuple(lengths))


def shared(made: CacheStrategy, layers: Sequence[Scored]) -> list[list[list[int | None]]]:
    """Return what the strategy's budget gives each layer, row and head."""
    assert made.budget.sharer is not None
    return made.budget.sharer.share(layers)


def heads_of_the_paper() -> None:
    """AdaKV: two heads of four entries, two each on average."""
    score = torch.tensor([[[0.9, 0.05, 0.03, 0.02], [0.3, 0.25, 0.25, 0.2]]], dtype=torch.float64)
    for safeguard, want in (("0.2", [1, 3]), ("0.5", [1, 3]), ("1.0", [2, 2]), ("0.0", [1, 3])):
        made = ada(2, safeguard, recent=0)
        assert shared(made, [scored(made, score, (4,))]) == [[want]]
    made = ada(2, "0.0", recent=1)
    assert shared(made, [scored(made, score, (4,))]) == [[[2, 2]]], "0.9 and 0.3, and the newest of each"
    assert shared(made, [scored(made, score[..., :2], (2,))]) == [[[2, 2]]], "the whole prompt fits"


def heads_equal_a_plain_contest() -> None:
    """AdaKV: protected entries, then every head's best, then the best of all; scores of few values tie a lot."""
    lots = random.Random(1)
    for _ in range(60):
        sinks, recent, mean = lots.randint(0, 2), lots.randint(0, 3), lots.randint(6, 10)
        safeguard, lengths = lots.choice(["0.0", "0.2", "0.7", "1.0"]), [lots.randint(5, 30) for _ in range(3)]
        made = ada(mean, safeguard, recent, sinks)
        values = [[[lots.randint(0, 9) for _ in range(max(lengths))] for _ in range(2)] for _ in lengths]
        layer = scored(made, torch.tensor(values, dtype=torch.float64), lengths)
        (got,) = shared(made, [layer])
        for row, length in enumerate(lengths):
            heads = [head[max(lengths) - length :] for head in values[row]]
            sets = contest(heads, mean, sinks, recent, Fraction(safeguard))
            assert got[row] == [len(one) if length > mean else mean for one in sets]
            for head, want in enumerate(sets):
                position = layer.position[row : row + 1, :, -length:]
                score = layer.score[row : row + 1, head : head + 1, -length:]
                index, _ = made.selector.keep(score, position, [len(want)], [length])
                assert index[0, 0].tolist() == sorted(want)


def contest(heads: Sequence[Sequence[float]], mean: int, sinks: int, recent: int, part: Fraction) -> list[set[int]]:
    """Return the positions each head keeps: entry by entry, the later one where scores tie."""
    length = len(heads[0])
    if mean >= length:
        return [set(range(length)) for _ in heads]
    protected = {*range(sinks), *range(length - recent, length)}
    safe = len(protected) + int(part * (mean - len(protected)))
    kept = []
    for head in heads:
        mine = set(protected)
        for at in sorted(range(length), key=lambda at, head=head: (head[at], at), reverse=True):  # type: ignore[misc]
            if len(mine) < safe:
                mine.add(at)
        kept.append(mine)
    rivals = [(score, at, -number) for number, head in enumerate(heads) for at, score in enumerate(head)]
    for _, at, number in sorted(rivals, reverse=True):
        if sum(map(len, kept)) < mean * len(heads):
            kept[-number].add(at)
    return kept


def sets_equal_a_plain_contest(name: str, model_name: str) -> None:
    """AdaKV, DefensiveKV: in a whole model each head holds what the contest of the scores gives it."""
    made = strategy(name, tokens=BUDGET)
    spy = Spy(made.scorer)
    tokens = ids(50, 2, PROMPT + NEW)
    driven = drive(model(model_name), replace(made, scorer=spy), tokens, uniform(rows=2))
    part = Fraction(str(made.budget.safeguard))  # type: ignore[attr-defined]
    sizes = set()
    for layer, score in spy.noted.items():
        for row in range(2):
            sets = contest(score[row].tolist(), BUDGET, 0, 4, part)
            assert positions(driven.held[0][layer][row]) == [sorted(kept) for kept in sets]
            new = list(range(PROMPT, PROMPT + NEW))
            assert positions(driven.held[-1][layer][row]) == [sorted(kept) + new for kept in sets]
            sizes |= {len(kept) for kept in sets}
    assert len(sizes) > 1, "all heads keep alike: the comparison proves nothing"


def a_full_safeguard_is_snapkv_bit_for_bit() -> None:
    """AdaKV whose heads keep everything of theirs in any case is SnapKV."""
    same("adakv", ("budget.safeguard=1.0",), "snapkv", ())


def heads_that_are_alike_keep_alike() -> None:
    """AdaKV: copies of a head keep the amount each, ties or not."""
    for values in (torch.rand(1, 1, 20), torch.ones(1, 1, 20), torch.arange(20)[None, None] // 3):
        made = ada(7, "0.0", recent=4)
        assert shared(made, [scored(made, values.double().expand(1, 4, 20), (20,))]) == [[[7] * 4]]


def a_contest_retains_more_than_equal_heads() -> None:
    """AdaKV without a safeguard retains at least the score of any other way to share."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        score = torch.rand(1, 3, 12, generator=generator, dtype=torch.float64) ** 3
        made = ada(4, "0.0", recent=0)
        ((got,),) = shared(made, [scored(made, score, (12,))])
        ordered = score[0].sort(dim=1, descending=True).values

        def retained(counts: Sequence[int | None], ordered: Tensor = ordered) -> float:
            return sum(float(head[:count].sum()) for head, count in zip(ordered, counts, strict=True))

        others = [c for c in itertools.product(range(13), repeat=3) if sum(c) == 12]
        assert retained(got) >= max(map(retained, others)) - 1e-12


# -- the same by another name -----------------------------------------------------------------------------------------


def same(name: str, overrides: Sequence[str], other: str, others: Sequence[str]) -> None:
    """Hold two methods together bit for bit, for rows of one length."""
    both = SAME_SCORES if other == "snapkv" else ()
    tokens = ids(62, 2, PROMPT + NEW)
    for model_name in ("llama_gqa", "gpt2"):
        one, two = (
            drive(model(model_name), strategy(method, *both, *more, tokens=BUDGET), tokens, uniform(rows=2))
            for method, more in ((name, overrides), (other, others))
        )
        assert torch.equal(one.logits, two.logits)
        assert_same_held(one.held, two.held)
