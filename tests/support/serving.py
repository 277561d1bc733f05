"""What must hold of requests that are served together."""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Sequence
from itertools import product

import torch

from kvbench.cache.codecs.base import as_bytes
from kvbench.cache.page_table import PagePool
from kvbench.cache.prefix_tree import PrefixTree
from kvbench.cache.shared import SharedCache
from kvbench.engines.batcher import Batcher
from kvbench.engines.schedulers import DepthFirst, FirstCome, GlobalGroups, Grouped, LongestMatch, Scheduler, Waiting
from kvbench.engines.serving import Serving
from kvbench.models.view import view_of
from kvbench.types import Request, RunShape
from tests.support.common_pages import in_pages
from tests.support.models import VOCABULARY, attention, model

SCHEDULERS: dict[str, Scheduler] = {
    "fcfs": FirstCome(reuse=False),
    "fcfs_cached": FirstCome(reuse=True),
    "prefix": Grouped(),
    "lpm": LongestMatch(ageing_per_s=64.0, most_ordered=128),
    "batchllm": GlobalGroups(ageing_per_s=0.1),
    "dfs": DepthFirst(ageing_per_s=4.0),
}
REUSING = tuple(name for name, one in SCHEDULERS.items() if one.reuses)
PLENTY = 4000


def alike(count: int, *, seed: int = 0, roots: int = 2, own: int = 8, new: int = 6) -> list[Request]:
    """Return requests of which some begin alike, some as far as into the middle of a page; all come at once."""
    rng = random.Random(seed)
    shared = [[rng.randrange(VOCABULARY) for _ in range(21)] for _ in range(roots)]
    requests = []
    for number in range(count):
        begins = shared[number % roots][: rng.choice((10, 21))]
        prompt = [*begins, *(rng.randrange(VOCABULARY) for _ in range(rng.randrange(1, own + 1)))]
        new_tokens = rng.randrange(1, new + 1)
        requests.append(
            Request(number=number, arrival_s=0.0, prompt=tuple(prompt), new_tokens=new_tokens, group=number % roots)
        )
    return requests


def serving(
    requests: Sequence[Request],
    scheduler: Scheduler,
    *,
    name: str = "llama_gqa",
    codec: str = "dense",
    size: int = 4,
    kv_tokens: int = PLENTY,
    pass_tokens: int = 16,
    max_running: int = 8,
) -> Serving:
    """Return requests that nobody has begun with, and pages full of what is no number."""
    made, network = in_pages(codec, size), model(name)
    view = view_of(network)
    cache = SharedCache(made.plans(view, RunShape(prompt_lengths=(1,), new_tokens=1)), view, kv_tokens // size)
    for layer in cache.layers:
        for room in (kept for each in layer.rooms for kept in each.kept):
            as_bytes(room).fill_(255 if room.dtype.itemsize == 1 else torch.nan)
    engine = Batcher(pass_tokens=pass_tokens, max_running=max_running, kv_tokens=kv_tokens)
    return Serving(network, cache, engine, scheduler, requests)


def _run(one: Serving, name: str = "llama_gqa") -> dict[int, list[int]]:
    with attention(model(name), "kvbench"):
        one.run()
    return {number: each.tokens for number, each in one.served.items()}


@functools.cache
def _alone(request: Request, name: str, codec: str) -> list[int]:
    whole = serving([request], SCHEDULERS["fcfs"], name=name, codec=codec, pass_tokens=1000)
    return _run(whole, name)[request.number]


def _assert_nothing_leaks(one: Serving) -> None:
    """Whoever is gone holds no page, and what the tree keeps is all that is held."""
    assert not one.running
    assert not one.waiting
    if one.tree is not None:
        assert one.tree.evictable() == one.pool.taken
        one.tree.evict(one.pool.num_pages)
    assert one.pool.taken == 0


def every_request_gets_the_tokens_it_gets_alone(
    scheduler: str, *, name: str = "llama_gqa", codec: str = "dense", size: int = 4, kv_tokens: int = PLENTY
) -> None:
    """Greedy tokens depend on nobody else, whoever is next, whatever is shared and whether pages are taken away."""
    requests = alike(14)
    one = serving(requests, SCHEDULERS[scheduler], name=name, codec=codec, size=size, kv_tokens=kv_tokens)
    found = _run(one, name)
    want = {each.number: _alone(each, name, codec) for each in requests}
    assert len({tuple(tokens) for tokens in want.values()}) > len(requests) // 2, "all say the same: this shows nothing"
    assert found == want
    _assert_nothing_leaks(one)


def two_hundred_requests_come_and_go(scheduler: str) -> None:
    """With little memory, pages taken away and requests taken back, the others get their tokens and nothing leaks."""
    rng, requests = random.Random(9), alike(200, seed=1, roots=9)
    requests = [
        Request(number=r.number, arrival_s=0.0, prompt=r.prompt, new_tokens=r.new_tokens + 14, group=r.group)
        for r in requests
    ]
    one = serving(requests, SCHEDULERS[scheduler], kv_tokens=400, pass_tokens=64, max_running=40)
    taken_back = rng.sample(range(200), 30)
    with attention(model("llama_gqa"), "kvbench"):
        while one.step():
            if taken_back and rng.random() < 0.5:
                one.cancel(taken_back.pop())
    assert sum(each.preemptions for each in one.served.values()) > 0, "no page was taken away: this shows nothing"
    gone = [each for each in one.served.values() if each.is_cancelled]
    assert len(gone) >= 15
    for each in one.served.values():
        assert each.is_cancelled or len(each.tokens) == each.request.new_tokens
        _assert_greedy(each.request.prompt, each.tokens)
    _assert_nothing_leaks(one)


def _assert_greedy(prompt: Sequence[int], tokens: Sequence[int]) -> None:
    """Each token is the one that the model itself would choose after those before it."""
    with attention(model("llama_gqa"), "sdpa"):
        logits = model("llama_gqa")(torch.tensor([[*prompt, *tokens]])).logits[0]
    assert logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist() == list(tokens)


def _tree_tokens(requests: Sequence[Request]) -> int:
    return len({each.prompt[:stop] for each in requests for stop in range(1, len(each.prompt) + 1)})


def _computed(requests: Sequence[Request], scheduler: str, kv_tokens: int = PLENTY) -> int:
    one = serving(requests, SCHEDULERS[scheduler], kv_tokens=kv_tokens)
    _run(one)
    return sum(each.computed_tokens for each in one.served.values())


def prompts_are_computed_once(scheduler: str) -> None:
    """With memory enough, what is computed of prompts is the tree that they make, and nothing of it twice."""
    requests = alike(14)
    assert _tree_tokens(requests) < sum(len(each.prompt) for each in requests) / 2
    assert _computed(requests, scheduler) == _tree_tokens(requests)


def the_last_token_of_a_prompt_is_always_read(scheduler: str) -> None:
    """A prompt that is there as a whole costs one token, as what comes after it is not kept."""
    (first,) = alike(1)
    again = [Request(number=number, arrival_s=0.0, prompt=first.prompt, new_tokens=3, group=0) for number in range(4)]
    assert _computed(again, scheduler) == len(first.prompt) + 3


def nothing_is_saved_where_nothing_is_shared(scheduler: str) -> None:
    """Prompts that begin differently are computed whole."""
    requests = [
        Request(number=number, arrival_s=0.0, prompt=(number, *range(50, 60)), new_tokens=2, group=0)
        for number in range(6)
    ]
    assert _computed(requests, scheduler) == sum(len(each.prompt) for each in requests)


def without_reuse_all_is_computed() -> None:
    """First come, first served, without reuse computes every prompt."""
    requests = alike(14)
    assert _computed(requests, "fcfs") == sum(len(each.prompt) for each in requests)


def order_saves_where_memory_is_short(scheduler: str) -> None:
    """With memory for some of the groups, taking their requests in turn computes more than taking them together."""
    requests = alike(24, roots=6, seed=2)
    little = 80
    assert _tree_tokens(requests) > little
    assert _computed(requests, scheduler, little) < _computed(requests, "fcfs_cached", little)


def a_conversation_goes_on_from_what_was_said(scheduler: str) -> None:
    """A later turn comes after the one before it, and reads that one's prompt, its answer and what is new."""
    first = Request(number=0, arrival_s=0.0, prompt=tuple(range(9)), new_tokens=5, group=0)
    second = Request(number=1, arrival_s=2.0, prompt=(40, 41, 42), new_tokens=4, group=0, follows=0)
    one = serving([first, second], SCHEDULERS[scheduler])
    found = _run(one)
    whole = Request(number=1, arrival_s=0.0, prompt=(*range(9), *found[0], 40, 41, 42), new_tokens=4, group=0)
    assert found == {0: _alone(first, "llama_gqa", "dense"), 1: _alone(whole, "llama_gqa", "dense")}
    end = one.served[0].token_s[-1]
    assert one.served[1].arrival_s == end + 2.0
    assert one.served[1].token_s[0] >= end + 2.0
    kept = 9 + 4 if SCHEDULERS[scheduler].reuses else 0  # what follows the last answer's last token was never read
    assert one.served[1].reused_tokens == kept


def nobody_waits_for_ever(scheduler: str) -> None:
    """One that shares nothing is served though others that do keep coming, faster than they are served."""
    common = tuple(range(20))
    steady = [
        Request(number=number, arrival_s=0.09 * number, prompt=(*common, 100 + number), new_tokens=1, group=0)
        for number in range(30)
    ]
    alone = Request(number=30, arrival_s=0.0, prompt=tuple(range(60, 80)), new_tokens=1, group=1)
    clock = _Clock()
    one = serving([steady[0], alone, *steady[1:]], SCHEDULERS[scheduler], max_running=1)
    one._now_s = clock
    one._began_s = 0.0
    with attention(model("llama_gqa"), "kvbench"):
        while one.step():
            clock.now += 0.1
    times = [one.served[number].token_s[0] for number in range(30)]
    assert one.served[30].token_s[0] < sorted(times)[20]


def groups_save_most(seed: int) -> None:
    """No other division into groups that share a prefix saves more than the global groups do, tokens there included."""
    rng = random.Random(seed)
    pool = PagePool(100)
    tree = PrefixTree(pool, 1)
    for _ in range(2):
        tokens = [rng.randrange(2) for _ in range(5)]
        tree.insert(tokens, [pool.take() for _ in tokens])
    prompts = [[rng.randrange(2) for _ in range(rng.randrange(1, 7))] for _ in range(7)]
    waiting = [Waiting(number=n, tokens=p, new_tokens=1, waited_s=0.0) for n, p in enumerate(prompts)]
    groups = GlobalGroups(ageing_per_s=0.0).groups(waiting, tree)
    assert sorted(one.number for group in groups for one in group.members) == list(range(len(prompts)))
    for group in groups:
        beginnings = {tuple(one.tokens[: group.shared]) for one in group.members}
        assert len(beginnings) == 1
        assert group.there == tree.length([*beginnings.pop()])
    assert sum(group.saved for group in groups) == _most_saved(prompts, tree)


def _most_saved(prompts: Sequence[list[int]], tree: PrefixTree) -> int:
    """Return the most that any choice of a prefix for every prompt saves, each prefix a group's."""

    def saved(lengths: Sequence[int]) -> int:
        groups = Counter(tuple(each[:length]) for each, length in zip(prompts, lengths, strict=True))
        return sum((count - 1) * len(prefix) + tree.length([*prefix]) for prefix, count in groups.items())

    return max(saved(lengths) for lengths in product(*(range(1, len(each) + 1) for each in prompts)))


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now
