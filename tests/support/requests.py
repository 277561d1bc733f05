"""Oracles of requests: trees counted prefix by prefix, sums of the settings, processes against their moments."""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest

from kvbench.types import Request
from kvbench.workloads import pieces
from kvbench.workloads.requests import Requests
from kvbench.workloads.source import TokenSource

SETTINGS: dict[str, Any] = {
    "seed": 0,
    "num_requests": 32,
    "tree": ((2, 12), (4, 5)),
    "own_tokens": 6,
    "own_spread": 0.0,
    "new_tokens": 4,
    "new_spread": 0.0,
    "turns": 1,
    "turn_tokens": 3,
    "pause_s": 0.5,
    "order": "interleaved",
    "arrival": "at_once",
    "rate_per_s": 8.0,
    "burst": 8,
    "trace": "",
    "length_scale": 1 / 64,
    "time_scale": 1.0,
    "ttft_target_ms": 1000.0,
    "tpot_target_ms": 100.0,
}
TREES: tuple[dict[str, Any], ...] = (
    {},
    {"tree": ()},
    {"tree": ((1, 9), (2, 4), (3, 2)), "num_requests": 20},
    {"own_tokens": 0},
    {"own_tokens": 0, "turns": 2},
    {"own_spread": 0.7},
    {"order": "grouped"},
    {"order": "shuffled", "num_requests": 37},
    {"turns": 3, "num_requests": 48},
)


def made(**changed: Any) -> Requests:
    """Return a workload with some settings changed."""
    return Requests(**SETTINGS | changed)


def source(*, prefix: tuple[int, ...] = (), text: tuple[int, ...] = (), vocabulary: int = 50) -> TokenSource:
    """Return random ids, unless there is a text."""
    return TokenSource(prefix=prefix, text=text, vocabulary=vocabulary, seed=0, name="a text", tasks=None)


_RNG = random.Random(0)
REPEATING = tuple(min(_RNG.randrange(47), _RNG.randrange(47)) for _ in range(4000))  # some tokens often
SOURCES = (source(), source(prefix=(48, 49)), source(text=REPEATING), source(prefix=(48,), text=REPEATING))


def known(requests: Sequence[Request]) -> list[tuple[int, ...]]:
    """Return the whole prompts, without what is generated in between."""
    out: list[tuple[int, ...]] = []
    for request in requests:
        out.append((() if request.follows is None else out[request.follows]) + request.prompt)
    return out


def in_common(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many tokens are alike at the beginning."""
    return max(count for count in range(min(len(left), len(right)) + 1) if left[:count] == right[:count])


def the_tree_has_the_size_that_the_settings_say() -> None:
    """Count every prefix of every prompt once; the settings give the same number, and the sharing with it."""
    for changed in TREES:
        for taken_from in SOURCES:
            workload = made(**changed)
            requests = workload.requests(taken_from)
            prompts = known(requests)
            nodes = {prompt[:end] for prompt in prompts for end in range(1, len(prompt) + 1)}
            chats = workload.num_requests // workload.turns
            path = sum(tokens for _, tokens in workload.tree)
            shared, branches = 0, 1
            for width, tokens in workload.tree:
                branches *= width
                shared += branches * tokens
            own = sum(len(request.prompt) - path for request in requests[:chats])
            assert workload.own_spread or own == chats * workload.own_tokens
            size = shared + own + chats * (workload.turns - 1) * workload.turn_tokens
            roots = workload.tree[0][0] if workload.tree else chats
            assert len(nodes) == size - (roots - 1) * len(taken_from.prefix), changed
            assert all(prompt[: len(taken_from.prefix)] == taken_from.prefix for prompt in prompts)
            assert pieces.sharing(requests) == pytest.approx(sum(map(len, prompts)) / len(nodes))


def conversations_come_in_the_order_asked_for() -> None:
    """See each leaf where the order puts it, and prompts of one leaf share its path and nothing else."""
    groups = {
        order: [request.group for request in made(order=order).requests(source())]
        for order in ("interleaved", "grouped", "shuffled")
    }
    assert groups["interleaved"] == [number % 8 for number in range(32)]
    assert groups["grouped"] == [number // 4 for number in range(32)]
    assert Counter(groups["shuffled"]) == Counter(groups["grouped"])
    assert groups["shuffled"] not in (groups["interleaved"], groups["grouped"])
    for order in groups:
        for one, other in combinations(made(order=order).requests(source()), 2):
            same_branch = one.group // 4 == other.group // 4
            assert in_common(one.prompt, other.prompt) == (17 if one.group == other.group else 12 if same_branch else 0)


def a_text_is_read_once_from_its_beginning() -> None:
    """Take a text in which no token occurs twice: the tree holds its first tokens, each once."""
    distinct = source(text=tuple(range(1000)), vocabulary=1000)
    prompts = known(made().requests(distinct))
    nodes = {prompt[:end] for prompt in prompts for end in range(1, len(prompt) + 1)}
    assert sorted(node[-1] for node in nodes) == list(range(len(nodes)))
    assert all(right - left == 1 for left, right in pairwise(prompts[0]))


def arrivals_have_no_memory_and_the_rate_asked_for() -> None:
    """Hold gaps to an exponential distribution: their mean, and the share below it, within five standard errors."""
    count, rate = 4000, 8.0
    times = [one.arrival_s for one in made(num_requests=count, arrival="poisson", tree=()).requests(large())]
    gaps = [times[0], *(after - before for before, after in pairwise(times))]
    assert min(gaps) > 0
    assert abs(sum(gaps) / count * rate - 1) < 5 / math.sqrt(count)
    below = 1 - math.exp(-1)
    assert abs(sum(gap < 1 / rate for gap in gaps) / count - below) < 5 * math.sqrt(below * (1 - below) / count)
    assert {one.arrival_s for one in made(arrival="at_once").requests(source())} == {0.0}


def bursts_come_together_at_the_same_rate() -> None:
    """See eight at each time, and as many requests in a second as without bursts."""
    count, rate, together = 4000, 8.0, 8
    times = [one.arrival_s for one in made(num_requests=count, arrival="bursts", tree=()).requests(large())]
    assert times == sorted(times)
    assert set(Counter(times).values()) == {together}
    assert abs(times[-1] * rate / count - 1) < 5 / math.sqrt(count / together)
    last = [one.arrival_s for one in made(num_requests=30, arrival="bursts").requests(source())]
    assert sorted(Counter(last).values()) == [6, 8, 8, 8]


def large() -> TokenSource:
    """Return random ids of a vocabulary in which thousands of prompts can begin differently."""
    return source(vocabulary=100_000)


def lengths_vary_as_far_as_asked() -> None:
    """Hold lengths to an even distribution from half to one and a half: its ends, and its mean by five errors."""
    count = 4000
    workload = made(num_requests=count, tree=(), own_tokens=40, own_spread=0.5, new_tokens=20, new_spread=0.25)
    requests = workload.requests(large())
    for lengths, mean, reach in (
        ([len(request.prompt) for request in requests], 40, 20),
        ([request.new_tokens for request in requests], 20, 5),
    ):
        assert set(lengths) == set(range(mean - reach, mean + reach + 1))
        deviation = math.sqrt(((2 * reach + 1) ** 2 - 1) / 12)
        assert abs(sum(lengths) / count - mean) < 5 * deviation / math.sqrt(count)
    widest = made(num_requests=count, tree=(), own_tokens=3, own_spread=1.0).requests(large())
    assert {len(request.prompt) for request in widest} == {1, 2, 3, 4, 5}


def rows_are_as_long_as_what_a_request_reads() -> None:
    """Play conversations: each turn reads all that was said and generated before it."""
    for changed in (*TREES, {"turns": 4, "own_spread": 0.5, "new_spread": 0.5}):
        workload = made(**changed)
        requests = workload.requests(source())
        (run,) = workload.runs()
        ends: list[int] = []
        for request, length in zip(requests, run.prompt_lengths, strict=True):
            assert length == len(request.prompt) + (0 if request.follows is None else ends[request.follows])
            ends.append(length + request.new_tokens)
        assert run.new_tokens == max(request.new_tokens for request in requests)


def turns_follow_their_own_conversation() -> None:
    """See every turn wait for the one before of its conversation, and read what is new alone."""
    requests = made(turns=3, num_requests=24).requests(source())
    assert [request.number for request in requests] == list(range(24))
    assert [request.follows for request in requests] == [None] * 8 + list(range(16))
    assert [request.group for request in requests] == list(range(8)) * 3
    for request in requests[8:]:
        assert (request.arrival_s, len(request.prompt)) == (0.5, 3)


def the_same_seed_means_the_same_requests() -> None:
    """Draw twice; another seed moves each of lengths, order and arrivals, and none of them moves another."""
    varied = {"own_spread": 0.5, "new_spread": 0.5, "order": "shuffled", "arrival": "poisson", "num_requests": 64}
    first, again, other = (made(**varied, seed=seed).requests(source()) for seed in (1, 1, 2))
    assert first == again

    def drawn(requests: Sequence[Request]) -> list[list[float]]:
        return [
            [len(request.prompt) for request in requests],
            [request.new_tokens for request in requests],
            [request.group for request in requests],
            [request.arrival_s for request in requests],
        ]

    assert all(one != two for one, two in zip(drawn(first), drawn(other), strict=True))
    settled = drawn(made(**varied | {"own_spread": 0.0, "order": "grouped"}, seed=1).requests(source()))
    assert [settled[1], settled[3]] == [drawn(first)[1], drawn(first)[3]]


MOONCAKE = (
    {"timestamp": 3000, "input_length": 1100, "output_length": 500, "hash_ids": [0, 1, 2]},
    {"timestamp": 3000, "input_length": 900, "output_length": 3, "hash_ids": [0, 3]},
    {"timestamp": 4500, "input_length": 1536, "output_length": 64, "hash_ids": [0, 1, 4]},
    {"timestamp": 9000, "input_length": 1024, "output_length": 64, "hash_ids": [5, 1]},
    {"timestamp": 9999, "input_length": 1, "output_length": 1, "hash_ids": [6]},
)


def traced(text: str, count: int, **changed: Any) -> Requests:
    """Return the workload of a trace, which is gone by then: what it says has been read."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a trace"
        file.write_bytes(text.encode())
        return _Kept(**SETTINGS | {"arrival": "trace", "trace": str(file), "num_requests": count, **changed})


class _Kept(Requests):
    """Requests that remember what was planned when they were made."""

    def _planned(self) -> Any:
        if "kept" not in self.__dict__:
            self.__dict__["kept"] = super()._planned()
        return self.__dict__["kept"]


def a_mooncake_trace_is_what_it_says_by_hand() -> None:
    """Scale five lines to blocks of 8 by hand: lengths, times, and how far each two begin alike."""
    text = "\n".join(json.dumps(line) for line in MOONCAKE) + "\n"
    for taken_from, begins in ((source(), 0), (source(prefix=(49,), text=REPEATING), 1)):
        workload = traced(text, 5, time_scale=0.5)
        requests = workload.requests(taken_from)
        assert workload.runs()[0].prompt_lengths == (17, 14, 24, 16, 1)
        assert [len(request.prompt) for request in requests] == [17, 14, 24, 16, 1]
        assert [request.new_tokens for request in requests] == [8, 1, 1, 1, 1]
        assert [request.arrival_s for request in requests] == pytest.approx([0.0, 0.0, 0.75, 3.0, 3.4995])
        prompts = [request.prompt for request in requests]
        alike = [in_common(prompts[one], prompts[other]) for one, other in ((0, 1), (0, 2), (1, 2), (0, 3), (2, 4))]
        assert alike == [8, 16, 8, begins, begins]
        assert prompts[3][8:] != prompts[0][8:16], "a block is told by all the ids before it"
    (first, *_) = traced(text, 2, length_scale=0.5).requests(source())
    assert (len(first.prompt), first.new_tokens) == (550, 250)


def an_azure_trace_is_what_it_says_by_hand() -> None:
    """Read times with and without a zone and lengths, of lines that end as on Windows."""
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:17:03.9799600,4808,10\r\n"
        "2023-11-16 18:17:04.0319600,3180,128\r\n\r\n2023-11-16 19:17:05+01:00,32,1\r\n"
    )
    requests = traced(text, 3, length_scale=0.125).requests(source())
    assert [len(request.prompt) for request in requests] == [601, 398, 4]
    assert [request.new_tokens for request in requests] == [1, 16, 1]
    assert [request.arrival_s for request in requests] == pytest.approx([0.0, 0.052, 1.02004], abs=1e-6)
    assert [in_common(one.prompt, other.prompt) for one, other in combinations(requests, 2)] == [0, 0, 0]
    assert len(traced(text, 2).requests(source())) == 2
