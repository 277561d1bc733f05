"""Requests that begin alike and arrive over time: a tree of prefixes, conversations, or a public trace."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from itertools import accumulate, product
from typing import Literal, get_args

from kvbench.types import Request, RunShape
from kvbench.workloads import pieces, traces
from kvbench.workloads.pieces import Planned
from kvbench.workloads.source import TokenSource, positive

Order = Literal["interleaved", "grouped", "shuffled"]
Arrival = Literal["at_once", "poisson", "bursts", "trace"]


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Held-out text (random ids where there is no tokenizer), continued greedily.

    Lengths count the tokenizer's own prefix, which all prompts share. Settings above `arrival` are about requests that
    are made up; with `arrival=trace` the file says what they would.

    Args:
        seed: of lengths, order and arrivals.
        num_requests: all turns of all conversations, or the first requests of a trace.
        tree: levels of the tree of shared prefixes: branches of each node, and tokens of each branch.
        own_tokens: tokens of a prompt that no other has; 0 makes the prompts of a leaf the same.
        own_spread: how far they vary, as a share of them.
        new_tokens: tokens that are generated.
        new_spread: how far they vary, as a share of them.
        turns: requests of each conversation, each after the end of the one before.
        turn_tokens: tokens that a later turn adds to what was said and generated.
        pause_s: seconds between the end of a turn and the next.
        order: of conversations: leaf by leaf in turn ("interleaved"), one leaf after the other ("grouped"), or any.
        arrival: when conversations begin: "at_once", one by one at random ("poisson"), several at once at random
            ("bursts"), or as `trace` says.
        rate_per_s: conversations that begin in a second, in the mean.
        burst: conversations that begin together ("bursts").
        trace: file of a public trace, "" without.
        length_scale: what its lengths are multiplied by.
        time_scale: what its times are multiplied by.
        ttft_target_ms: within which a first token is in time, for the goodput.
        tpot_target_ms: the same of each later token, in the mean.
    """

    seed: int
    num_requests: int
    tree: tuple[tuple[int, ...], ...]
    own_tokens: int
    own_spread: float
    new_tokens: int
    new_spread: float
    turns: int
    turn_tokens: int
    pause_s: float
    order: Order
    arrival: Arrival
    rate_per_s: float
    burst: int
    trace: str
    length_scale: float
    time_scale: float
    ttft_target_ms: float
    tpot_target_ms: float

    text_path = ""

    def __post_init__(self) -> None:
        """Refuse what no requests can be, and traces that cannot be read."""
        whole = ("num_requests", "new_tokens", "turns", "turn_tokens", "burst")
        positive("workload", **{name: getattr(self, name) for name in whole})
        is_tree = all(len(level) == 2 and min(level) >= 1 for level in self.tree)
        leaves = math.prod(level[0] for level in self.tree) if is_tree else 0
        rules = {
            "tree": (is_tree, "levels of [branches, tokens], both at least 1"),
            "own_tokens": (self.own_tokens >= (0 if self.tree else 1), "at least 1, or 0 below a workload.tree"),
            "own_spread": (0 <= self.own_spread <= 1, "from 0 to 1"),
            "new_spread": (0 <= self.new_spread <= 1, "from 0 to 1"),
            "pause_s": (0 <= self.pause_s < math.inf, "at least 0"),
            **{
                name: (0 < getattr(self, name) < math.inf, "more than 0")
                for name in ("rate_per_s", "length_scale", "time_scale", "ttft_target_ms", "tpot_target_ms")
            },
            "order": (self.order in get_args(Order), f"one of {', '.join(get_args(Order))}"),
            "arrival": (self.arrival in get_args(Arrival), f"one of {', '.join(get_args(Arrival))}"),
            "trace": ((self.arrival == "trace") == bool(self.trace), "a file with workload.arrival=trace, else empty"),
        }
        if self.trace:
            rules["turns"] = (self.turns == 1, "1 with workload.arrival=trace")
        else:
            fits = self.num_requests % self.turns == 0 and self.num_requests // self.turns >= leaves
            rule = (
                f"workload.turns={self.turns} times at least {leaves} conversations, one for each leaf of workload.tree"
            )
            rules["num_requests"] = (fits, rule)
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"workload.{name} must be {rule}; got {getattr(self, name)!r}.")
        if self.trace:
            self._planned()

    def runs(self) -> list[RunShape]:
        """Return the shape of all requests, a row for each, as if they ran at once: its whole prompt, chat included."""
        planned, lengths = self._planned(), list[int]()
        for one in planned:
            before = 0 if one.follows is None else lengths[one.follows] + planned[one.follows].new_tokens
            lengths.append(before + one.prompt_tokens)
        return [RunShape(prompt_lengths=tuple(lengths), new_tokens=max(one.new_tokens for one in planned))]

    def requests(self, source: TokenSource) -> list[Request]:
        """Return the requests; those that follow none in the order of their arrival.

        Raises:
            ValueError: if the source is too small for them.
        """
        return pieces.write(self._planned(), source)

    def _planned(self) -> list[Planned]:
        if self.arrival == "trace":
            return traces.read(
                self.trace, self.num_requests, length_scale=self.length_scale, time_scale=self.time_scale
            )
        count = self.num_requests // self.turns
        leaves = self._leaves(count)
        own = self._lengths("own", self.own_tokens, self.own_spread, count)
        new = self._lengths("new", self.new_tokens, self.new_spread, self.num_requests)
        arrivals = self._arrivals(count)
        paths = list(product(*(range(branches) for branches, _ in self.tree)))
        planned = []
        for number, new_tokens in enumerate(new):
            turn, chat = divmod(number, count)
            leaf, said = leaves[chat], [(chat, self.turn_tokens)]
            if turn == 0:
                path = zip(paths[leaf], (tokens for _, tokens in self.tree), strict=True)
                said = [piece for piece in (*path, (chat, own[chat])) if piece[1]]
            planned.append(
                Planned(
                    pieces=tuple(said),
                    prompt_tokens=sum(tokens for _, tokens in said),
                    new_tokens=new_tokens,
                    arrival_s=self.pause_s if turn else arrivals[chat],
                    group=leaf if self.turns == 1 else chat,
                    follows=number - count if turn else None,
                )
            )
        return planned

    def _rng(self, what: str) -> random.Random:
        return random.Random(f"{what}-{self.seed}")  # one for each, so that none moves when another draws more

    def _leaves(self, count: int) -> list[int]:
        """Return the leaf of each conversation."""
        num_leaves = math.prod(branches for branches, _ in self.tree)
        if self.order == "grouped":
            return [chat * num_leaves // count for chat in range(count)]
        leaves = [chat % num_leaves for chat in range(count)]
        if self.order == "shuffled":
            self._rng("order").shuffle(leaves)
        return leaves

    def _lengths(self, what: str, mean: int, spread: float, count: int) -> list[int]:
        """Return lengths drawn evenly from as far below the mean as above, at least 1 unless the mean is 0."""
        reach, rng = max(0, min(round(mean * spread), mean - 1)), self._rng(what)
        return [rng.randint(mean - reach, mean + reach) for _ in range(count)]

    def _arrivals(self, count: int) -> list[float]:
        """Return when each conversation begins [s]; a process without memory but for what comes together."""
        if self.arrival == "at_once":
            return [0.0] * count
        together, rng = self.burst if self.arrival == "bursts" else 1, self._rng("arrival")
        times = list(accumulate(rng.expovariate(self.rate_per_s / together) for _ in range(-(-count // together))))
        return [times[chat // together] for chat in range(count)]
