"""RazorAttention and FastGen on one layer of random queries, keys and values, against plain loops."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from kvbench.cache.codecs.dense import Dense
from kvbench.cache.layer import CacheLayer
from kvbench.cache.plan import LayerPlan
from kvbench.cache.views import Scored
from kvbench.strategies.base import CacheStrategy
from kvbench.strategies.budget.policies import CheapestPolicy
from kvbench.types import DECODE, PREFILL, LayerShape, ModelView, RunShape, Sizes, Step
from tests.support import toy
from tests.support.checks import NEW, PROMPT, assert_close, uniform
from tests.support.drive import drive, positions
from tests.support.head_scores import write
from tests.support.models import ids, model
from tests.support.parts import rand
from tests.support.strategies import strategy

HEADS, GROUPS, WIDTH = 4, 2, 8
SHAPE = LayerShape(query_heads=HEADS, kv_heads=GROUPS, key_dim=WIDTH, value_dim=WIDTH, window=0, rotary=None)
VIEW = ModelView(
    layers=(SHAPE,),
    sizes=Sizes(weights_bytes=0, hidden=HEADS * WIDTH, intermediate=0, vocabulary=0),
    dtype=torch.float64,
    device=torch.device("cpu"),
    max_positions=512,
    has_learned_positions=True,
)
SCALE = 0.9
STEPS = 15


def numbers(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries [1, H, T, D], keys and values [1, G, T, D] of prompt and continuation; attention is peaked."""
    total = PROMPT + STEPS
    query, key, value = (rand(1, heads, total, WIDTH, seed=seed + i) for i, heads in enumerate((HEADS, GROUPS, GROUPS)))
    return query * torch.tensor([0.2, 1.0, 3.0, 6.0])[:, None, None], key, value


def layer_of(made: CacheStrategy) -> CacheLayer:
    """Return the one layer of a strategy."""
    run = RunShape(prompt_lengths=(PROMPT,), new_tokens=STEPS)
    assert made.unsupported(VIEW, run) is None
    return CacheLayer(made.plans(VIEW, run)[0], run, None, torch.empty(0, dtype=torch.float64))


def attend(layer: CacheLayer, made: tuple[Tensor, Tensor, Tensor], at: slice, step: Step) -> Tensor:
    """Feed a layer the queries, keys and values of some positions."""
    query, key, value = (t[:, :, at] for t in made)
    return layer.attend(query, key, value, SCALE, step)


def softmax(logits: dict[int, float]) -> dict[int, float]:
    """Return weights that add up to 1."""
    top = max(logits.values())
    powers = {at: math.exp(logit - top) for at, logit in logits.items()}
    return {at: power / sum(powers.values()) for at, power in powers.items()}


# -- RazorAttention -------------------------------------------------------------------------------------------------


def razor_equals_a_plain_loop() -> None:
    """RazorAttention: a streaming head sees sinks, recent tokens and the mean of the rest, weighed."""
    query, key, value = numbers(seed=3)
    with TemporaryDirectory() as path:
        tables = {"induction": [[0.1, 0.6]], "echo": [[0.0, 0.0]]}
        found = f"budget.scores='{write(Path(path), 'layer', 'repetition', tables, VIEW)}'"
        made = strategy("razorattention", found, "budget.echo_share=0", "budget.induction_share=0.5")
        layer = layer_of(made)
    attend(layer, (query, key, value), slice(PROMPT), PREFILL)
    for now in range(PROMPT, PROMPT + STEPS):
        got = attend(layer, (query, key, value), slice(now, now + 1), DECODE)
        for head in range(HEADS):
            keys, values = key[0, head // 2], value[0, head // 2]
            seen = list(range(now + 1))
            gone: list[int] = []
            if head // 2 == 0:  # streams
                seen = [*range(2), *range(now - 6, now + 1)]
                gone = [at for at in range(now) if at not in seen]
            logits = {at: float(query[0, head, now] @ keys[at]) * SCALE for at in seen}
            rows = {at: values[at] for at in seen}
            if gone:
                mean = torch.stack([keys[at] for at in gone]).mean(dim=0)
                logits[-1] = float(query[0, head, now] @ mean) * SCALE + math.log(len(gone))
                rows[-1] = torch.stack([values[at] for at in gone]).mean(dim=0)
            weights = softmax(logits)
            assert_close(got[0, head, 0], sum((weights[at] * rows[at] for at in rows), torch.zeros(WIDTH).double()))


# -- FastGen --------------------------------------------------------------------------------------------------------


def toy_choice(threshold: float) -> int | None:
    """Return what the toy's head keeps."""
    overrides = ("budget.num_special=1", "budget.heavy_share=0.34", "budget.local_share=0.34")
    made = strategy("fastgen", *overrides, f"budget.threshold={threshold}")
    assert isinstance(made.budget, CheapestPolicy)
    view = toy.view(*toy.prompt())
    score = made.scorer.prompt(view)
    plan = LayerPlan(
        index=0,
        shape=toy.SHAPE,
        codec=Dense(),
        scorer=made.scorer,
        selector=made.selector,
        evicted=made.evicted,
        budget=(5,),
        period=1,
        by_rank=False,
    )
    noted = made.budget.statistic(view)
    scored = Scored(plan=plan, score=score, position=view.position, statistic=noted, lengths=(6,))
    return made.budget.share([scored])[0][0][0]


def policies_of_the_six_tokens() -> None:
    """FastGen: {0} recovers .258, {0,1,2} .857 and {0,1,2,4,5} .89 of the six tokens' attention."""
    means = torch.tensor([total / (6 - at) for at, total in enumerate(toy.COLUMN_SUMS)], dtype=torch.float64)
    assert_close(strategy("fastgen").scorer.prompt(toy.view(*toy.prompt()))[0, 0], means)
    edges = (1.55 / 6, (1.55 + 2.35 + 1.24) / 6, (1.55 + 2.35 + 1.24 + 0.16 + 0.04) / 6)
    for edge, below, above in zip(edges, (1, 3, 5), (3, 5, None), strict=True):
        assert toy_choice(edge - 1e-9) == below
        assert toy_choice(edge + 1e-9) == above


@dataclass
class Plain:
    """FastGen on one KV head, in lists.

    Args:
        queries: of the head's group [T, D] each.
        keys: [T, D].
        threshold: attention to recover.
    """

    queries: list[Tensor]
    keys: Tensor
    threshold: float
    kept: list[int] = field(default_factory=list)
    sums: dict[int, float] = field(default_factory=dict)
    policy: int = 3
    special: int = 2
    share: int = int(0.3 * PROMPT)

    def weights(self, now: int, seen: list[int]) -> dict[int, float]:
        """Return the group's mean attention of one query."""
        each = [softmax({at: float(query[now] @ self.keys[at]) * SCALE for at in seen}) for query in self.queries]
        return {at: sum(one[at] for one in each) / len(each) for at in seen}

    def read(self) -> None:
        """Read the prompt and choose."""
        rows = [self.weights(now, list(range(now + 1))) for now in range(PROMPT)]
        self.sums = {at: sum(row.get(at, 0.0) for row in rows) for at in range(PROMPT)}
        sinks = list(range(self.special))
        local = list(range(PROMPT - self.share, PROMPT))
        sets = [
            sinks,
            sinks + self.heavy([at for at in range(PROMPT) if at not in sinks]),
            sinks + local + self.heavy([at for at in range(PROMPT) if at not in sinks + local]),
            list(range(PROMPT)),
        ]
        for self.policy, self.kept in enumerate(sets):
            if sum(row.get(at, 0.0) for row in rows for at in self.kept) / PROMPT >= self.threshold:
                break

    def heavy(self, among: list[int], now: int = PROMPT - 1) -> list[int]:
        """Return the entries with the most attention per query that could see them."""
        return sorted(among, key=lambda at: self.sums[at] / (now - at + 1))[len(among) - self.share :]

    def decode(self, now: int) -> None:
        """Attend to one more token and let one entry go."""
        self.kept.append(now)
        self.sums[now] = 0.0
        for at, weight in self.weights(now, self.kept).items():
            self.sums[at] += weight
        if self.policy == 3:
            return
        safe = [*range(self.special), *(range(now - self.share + 1, now + 1) if self.policy == 2 else ())]
        loose = [at for at in self.kept if at not in safe]
        self.kept.remove(min(loose, key=lambda at: self.sums[at] / (now - at + 1)))


def policies_equal_a_slow_route() -> None:
    """FastGen: policies and kept sets are those of plain loops, at the prompt's end and at every step after it."""
    chosen = set()
    for seed, threshold in ((0, 0.5), (10, 0.6), (20, 0.75), (30, 0.05), (40, 0.85)):
        query, key, value = numbers(seed)
        layer = layer_of(strategy("fastgen", f"budget.threshold={threshold}"))
        attend(layer, (query, key, value), slice(PROMPT), PREFILL)
        heads = [Plain([query[0, 2 * g], query[0, 2 * g + 1]], key[0, g], threshold) for g in range(GROUPS)]
        for head in heads:
            head.read()
            chosen.add(head.policy)
        for now in range(PROMPT, PROMPT + STEPS + 1):
            held = layer.held_positions()[0]
            held = held.expand(GROUPS, -1)  # one set for both heads where both keep everything
            assert positions(held) == [sorted(head.kept) for head in heads], f"before token {now}"
            if now < PROMPT + STEPS:
                attend(layer, (query, key, value), slice(now, now + 1), DECODE)
                for head in heads:
                    head.decode(now)
    assert chosen == {0, 1, 2, 3}, f"only policies {chosen} were chosen"


def a_threshold_of_zero_keeps_special_tokens(name: str) -> None:
    """FastGen: nothing to recover, nothing kept but the first tokens, at every step."""
    driven = drive(model(name), strategy("fastgen", "budget.threshold=0"), ids(97, 1, PROMPT + NEW), uniform())
    for layers in driven.held:
        for held in layers:
            assert all(kept == [0, 1] for kept in positions(held[0]))


def a_threshold_above_one_is_the_full_cache(name: str) -> None:
    """FastGen: no policy recovers more than everything, so that everything stays, bit for bit."""
    tokens = ids(98, 2, PROMPT + NEW)
    got = drive(model(name), strategy("fastgen", "budget.threshold=1.1"), tokens, uniform(rows=2))
    want = drive(model(name), strategy("baseline"), tokens, uniform(rows=2))
    assert torch.equal(got.logits, want.logits)
