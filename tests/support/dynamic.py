"""What must hold for the methods that count, add noise or draw lots; the mutant test runs it on broken parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from kvbench.cache.kv_cache import KVCache
from kvbench.cache.views import Observation
from kvbench.kernels import column_sums
from kvbench.models.view import view_of
from kvbench.strategies.base import CacheStrategy
from kvbench.strategies.selection.lots import PRIME, exponential, pair_lots
from kvbench.strategies.selection.proxy import TopAndSampled
from kvbench.types import RunShape
from tests.support import toy
from tests.support.checks import BUDGET, NEW, PROMPT, assert_close, assert_held_is, assert_same_held, uniform
from tests.support.drive import drive, padded, slots_of
from tests.support.models import LAYERS, ids, model
from tests.support.settings.dynamic import SETTINGS
from tests.support.slow_dynamic import Paper, run
from tests.support.strategies import composed

PAPERS = {
    "scissorhands": Paper(score="lost", budget=BUDGET, period=4, recent=2, history=10),
    "keyformer": Paper(score="noisy", budget=BUDGET, period=4, recent=3, taus=(1.0, 2.0, 8)),
    "nacl": Paper(score="proxy", budget=BUDGET, sinks=2, recent=2, voters="0.2", sampled=4),
}


def strategy(name: str, *overrides: str, tokens: int = BUDGET) -> CacheStrategy:
    """Return a method as the tests set it, with so many entries."""
    return composed(name, *SETTINGS[name].overrides, "budget.unit=tokens", f"budget.amount={tokens}", *overrides)


# -- the whole method, by the slow route ----------------------------------------------------------------------------


def equals_the_slow_route(name: str, model_name: str, overrides: Sequence[str] = (), **changes: Any) -> None:
    """Logits, kept positions and scores equal dense attention under plain loops, at every step."""
    paper = Paper(**(vars(PAPERS[name]) | changes))
    tokens = ids(1, 1, PROMPT + NEW)
    want, made = run(model_name, tokens, PROMPT, paper)
    got = drive(model(model_name), strategy(name, *overrides), tokens, uniform())
    assert_close(got.logits, want)
    assert_held_is(got, 0, made)


def rows_equal_the_slow_route(name: str, model_name: str, chunks: Sequence[int] = ()) -> None:
    """Each row of a left-padded batch gets what the slow route gives it alone."""
    lengths = (20, PROMPT, 15)
    texts = [ids(7 + row, 1, length + NEW)[0] for row, length in enumerate(lengths)]
    shape = RunShape(prompt_lengths=lengths, new_tokens=NEW)
    got = drive(model(model_name), strategy(name), padded(texts), shape, chunks=chunks)
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        want, made = run(model_name, text[None], length, PAPERS[name])
        assert_close(got.logits[row, PROMPT - length :], want[0])
        assert_held_is(got, row, made)


# -- counting -------------------------------------------------------------------------------------------------------


def lost_steps_choose_from_the_prompt() -> None:
    """Six steps of the worked example count together, or the last two alone."""
    for history, want in ((6, {1, 3, 4, 5}), (2, {1, 2, 3, 5})):
        made = composed("scissorhands", f"scorer.history={history}", "selector.num_recent=0")
        assert toy.kept(made.scorer, made.selector, toy.view(*toy.prompt())) == want


def one_spike_counts_once() -> None:
    """An entry with one huge weight and small ones after it leaves; H2O keeps it for its sum."""
    rows = ((1.0,), (0.4, 0.6), (0.3, 0.3, 0.4), (0.26, 0.27, 0.27, 0.2), (0.01, 0.01, 0.01, 0.01, 0.96))
    tail = (0.2, 0.2, 0.2, 0.2, 0.0001, 0.1999)
    seen = toy.view(*toy.prompt((*rows, tail, (0.18, 0.18, 0.18, 0.18, 0.01, 0.16, 0.11))))
    made = composed("scissorhands", "scorer.history=3", "selector.num_recent=0")
    assert 4 not in toy.kept(made.scorer, made.selector, seen)
    heavy = composed("h2o", "selector.recent_share=0")
    assert 4 in toy.kept(heavy.scorer, heavy.selector, seen)


def above_average_never_leaves() -> None:
    """An entry that gets an equal share or more at each step stays, whatever else happens."""
    made = composed("scissorhands", "scorer.history=4", "selector.num_recent=0")
    generator = torch.Generator().manual_seed(0)
    scorer, selector = made.scorer, made.selector
    slots, width = 8, scorer.memory_bytes
    score, memory = torch.zeros(1, 1, slots).double(), torch.zeros(1, 1, slots, width, dtype=torch.uint8).squeeze(-1)
    position, out = torch.arange(slots)[None, None], torch.zeros(1, 1, 1, dtype=torch.int64)
    for step in range(40):
        weights = torch.rand(slots, generator=generator).double()
        weights[3] = weights.sum() / 3
        weights = (weights / weights.sum())[None, None, None]
        scorer.observe(_seen(score, weights, position, memory, step))
        selector.victims(score, position, slots, 0, out, has_empty=False)
        assert out.item() != 3
        assert score[0, 0, 3] == 0


def the_ring_forgets(history: int = 10) -> None:
    """A lost step counts for as many steps as the ring is long, and not one longer; a won one never."""
    scorer = composed("scissorhands", f"scorer.history={history}").scorer
    score = torch.zeros(1, 1, 2).double()
    memory = torch.zeros(1, 1, 2, scorer.memory_bytes, dtype=torch.uint8).squeeze(-1)
    position, noted = torch.arange(2)[None, None], []
    for step in range(3 * history):
        lost = 0.1 if step in (0, 3) else 0.9
        weights = torch.tensor([[[[lost, 1 - lost]]]]).double()
        scorer.observe(_seen(score, weights, position, memory, step))
        noted.append(int(score[0, 0, 0]))
    counts = [-((step < history) + (3 <= step < history + 3)) for step in range(3 * history)]
    assert noted == counts


def _seen(score: Tensor, weights: Tensor, position: Tensor, memory: Tensor, step: int) -> Observation:
    return Observation(score=score, weights=weights, position=position, memory=memory, step=step, layer=0)


def counts_have_the_bits_of_their_ring(model_name: str, history: int) -> None:
    """At every step the score of every entry held is minus the number of bits set beside it."""
    tokens = ids(2, 2, PROMPT + NEW)
    seen = []

    def watch(cache: KVCache, _: int) -> None:
        for layer in cache.layers:
            slots = slots_of(layer)
            assert slots.score is not None
            memory = slots.beside["memory"].reshape(*slots.score.shape, -1)
            bits = (memory[..., None] >> torch.arange(8)).bitwise_and(1).sum(dim=(-2, -1))
            held = slots.position >= 0
            assert torch.equal(-slots.score[held], bits[held].to(slots.score.dtype))
            seen.append(int(bits[held].sum()))

    drive(
        model(model_name), strategy("scissorhands", f"scorer.history={history}"), tokens, uniform(rows=2), watch=watch
    )
    assert min(seen) > 0, "nothing was counted: the comparison proves nothing"


def equal_counts_let_the_oldest_go() -> None:
    """Of entries with the same count those with the lowest positions leave, wherever they are stored."""
    selector = composed("scissorhands", "selector.num_recent=1").selector
    position = torch.tensor([[[9, 4, 7, 5, 6, 3]]])
    score = torch.tensor([[[-2.0, -1.0, -2.0, -1.0, -2.0, 0.0]]])
    out = torch.zeros(1, 1, 3, dtype=torch.int64)
    selector.victims(score, position, 9, 1, out, has_empty=False)
    assert {int(position[0, 0, slot]) for slot in out[0, 0]} == {6, 7, 4}


# -- noise ----------------------------------------------------------------------------------------------------------


def without_noise_it_is_h2o(model_name: str) -> None:
    """Noise 0 and temperature 1: the same bits as H2O, scores included."""
    tokens, plain = ids(3, 2, PROMPT + NEW), ("scorer.noise=0", "scorer.tau_end=1")
    for period in (1, 4):
        steps = (f"trigger.period={period}", "selector.recent_share=0.5")
        mine = drive(model(model_name), strategy("keyformer", *plain, *steps), tokens, uniform(rows=2))
        heavy = composed("h2o", "budget.unit=tokens", f"budget.amount={BUDGET}", *steps)
        want = drive(model(model_name), heavy, tokens, uniform(rows=2))
        assert torch.equal(mine.logits, want.logits)
        assert_same_held(mine.held, want.held)
        assert mine.scores == want.scores


def noisy_sums_are_conserved(model_name: str) -> None:
    """While nothing has left, the scores of a head add up to the number of queries so far."""
    tokens = ids(4, 1, PROMPT + NEW)
    got = drive(model(model_name), strategy("keyformer", tokens=PROMPT + NEW), tokens, uniform())
    for step, layers in enumerate(got.scores):
        for layer in range(LAYERS):
            for head in layers[layer][0]:
                total = sum(score for at, score in head.items() if at >= 0)
                assert total == pytest.approx(PROMPT + step, abs=1e-9)


def temperature_flattens() -> None:
    """Temperature 2 without noise gives the square roots of the weights, normalised; it is reached in equal steps."""
    scorer = composed("keyformer", "scorer.noise=0", "scorer.tau_steps=4").scorer
    weights = torch.tensor([0.5, 0.3, 0.2]).double()
    for step, tau in enumerate((1.25, 1.5, 1.75, 2.0, 2.0)):
        score = torch.zeros(1, 1, 3).double()
        seen = _seen(score, weights[None, None, None], torch.arange(3)[None, None], score, step)
        scorer.observe(seen)
        raised = [w ** (1 / tau) for w in weights.tolist()]
        assert score[0, 0].tolist() == pytest.approx([w / sum(raised) for w in raised], abs=1e-12)


def noise_ignores_blocks(model_name: str) -> None:
    """Neither the blocks in which attention is recomputed nor chunks of the prompt change the noise."""
    tokens, made = ids(5, 2, PROMPT + NEW), strategy("keyformer")
    whole = drive(model(model_name), made, tokens, uniform(rows=2))
    for chunks in ((), (7, 1, 13, 3)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(column_sums, "QUERY_BLOCK", 5)
            parts = drive(model(model_name), made, tokens, uniform(rows=2), chunks=chunks)
        assert_close(parts.logits, whole.logits)
        assert_same_held(parts.held, whole.held)


def noise_is_gumbel() -> None:
    """Mean and variance are those of the distribution, in float32 without an infinity, and neighbours are strangers."""
    head = torch.arange(4)[:, None, None]
    query, key = torch.arange(512)[None, :, None], torch.arange(512)[None, None]
    noise = -exponential(pair_lots(0, 1, head, query, key), torch.float32).log()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.02)
    extremes = exponential(torch.tensor([0, PRIME - 1]), torch.float32)
    assert extremes.isfinite().all()
    assert (extremes > 0).all()
    centred = (noise - noise.mean()) / noise.std()
    for dim, length in enumerate(centred.shape):
        neighbours = centred.narrow(dim, 1, length - 1) * centred.narrow(dim, 0, length - 1)
        assert abs(neighbours.mean().item()) < 0.01
    assert abs((centred * centred.transpose(1, 2)).mean().item()) < 0.01
    again = -exponential(pair_lots(1, 1, head, query, key), torch.float32).log()
    assert abs(((again - again.mean()) / again.std() * centred).mean().item()) < 0.01


# -- lots -----------------------------------------------------------------------------------------------------------


def without_lots_it_is_snapkv(model_name: str) -> None:
    """No lots and a fixed number of voters that stay: SnapKV without pooling."""
    tokens = ids(6, 2, PROMPT + NEW)
    few = ("selector.sampled_share=0", "selector.num_sink=0", "selector.num_recent=4", "selector.recent_share=0")
    mine = drive(model(model_name), strategy("nacl", *few), tokens, uniform(rows=2))
    window = ("scorer.window=4", "scorer.kernel=1", "budget.unit=tokens", f"budget.amount={BUDGET}")
    want = drive(model(model_name), composed("snapkv", *window), tokens, uniform(rows=2))
    assert torch.equal(mine.logits, want.logits)
    assert_same_held(mine.held, want.held)


def drawn_with_the_softmax() -> None:
    """Over many heads with the same scores one drawn entry follows softmax(score), two without replacement."""
    values = torch.tensor([9.0, 1.0, 0.2, 0.9, -0.5, 9.0]).double()
    heads = 40_000
    score, position = values.expand(1, heads, 6), torch.arange(6)[None, None]
    odds = values[1:5].softmax(dim=0).tolist()
    for drawn, share in ((1, 0.34), (2, 0.5)):
        selector = sampling(share=share)
        index, _ = selector.keep(score, position, [2 + drawn], [6])
        assert ((index == 0) | (index == 5)).sum().item() == 2 * heads
        got = [(index == at).sum().item() / heads for at in range(1, 5)]
        second = [sum(odds[j] * odds[i] / (1 - odds[j]) for j in range(4) if j != i) for i in range(4)]
        want = odds if drawn == 1 else [one + two for one, two in zip(odds, second, strict=True)]
        assert got == pytest.approx(want, abs=0.01)


def lots_differ() -> None:
    """With equal scores, heads, layers and seeds draw different entries; the same ones draw the same again."""
    score, position = torch.zeros(1, 3, 64).double(), torch.arange(64)[None, None]
    drawn = {
        (seed, layer): sampling(share=1.0, seed=seed).of_layer(layer).keep(score, position, [16], [64])[0]
        for seed in (0, 1)
        for layer in (0, 1)
    }
    sets = [tuple(head.tolist()) for index in drawn.values() for head in index[0]]
    assert len(set(sets)) == len(sets) == 12
    again = sampling(share=1.0, seed=1).of_layer(1).keep(score, position, [16], [64])[0]
    assert torch.equal(again, drawn[1, 1])


def layers_draw_their_own(model_name: str) -> None:
    """The cache asks each layer's own selector."""
    made = strategy("nacl", "selector.sampled_share=0.6")
    plans = made.plans(view_of(model(model_name)), uniform())
    seeds = [plan.selector.seed for plan in plans if isinstance(plan.selector, TopAndSampled)]
    assert len(set(seeds)) == len(seeds) == LAYERS


def sampling(share: float, seed: int = 0) -> TopAndSampled:
    """Return a selector without protected entries."""
    return TopAndSampled(num_sink=0, num_recent=0, recent_share=0.0, sampled_share=share, seed=seed)
