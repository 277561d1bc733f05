"""Continuous batching: every pass reads what each request that is under way needs next, in pages of one pool."""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from kvbench.cache.page_table import PagePool
from kvbench.cache.prefix_tree import Node, PrefixTree
from kvbench.cache.shared import Copy, Piece, SharedCache
from kvbench.engines.batcher import Batcher
from kvbench.engines.schedulers import Scheduler, Waiting
from kvbench.types import Request

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(kw_only=True)
class Served:
    """What became of a request; times in seconds after the start.

    Args:
        request: what was asked.
        arrival_s: when it came.
        tokens: generated so far.
        admitted_s: when its first pass began.
        token_s: when each generated token was there.
        prompt_tokens: of the whole prompt, what came before in a conversation included.
        computed_tokens: of prompts, computed; again where it was preempted.
        reused_tokens: of prompts, that entries were there for.
        preemptions: how often its pages were taken away.
        is_cancelled: whether it was taken back before its end.
    """

    request: Request
    arrival_s: float
    tokens: list[int] = field(default_factory=list)
    admitted_s: float | None = None
    token_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    computed_tokens: int = 0
    reused_tokens: int = 0
    preemptions: int = 0
    is_cancelled: bool = False


@dataclass(kw_only=True)
class _Running:
    """A request that has come and is not done.

    Args:
        served: what is told of it in the end.
        tokens: prompt and what was generated.
        stored: how many of them have entries.
        furthest: how many had them at most; more is lost when its pages are taken away.
        pages: that these lie in.
        node: path of the tree that it needs; None where nothing is kept.
        goes_on: whether the page that the next token goes to is another's, who may write to it.
        shares: whether it may need pages that others hold; not, where it has no room beside these though it is alone.
    """

    served: Served
    tokens: list[int]
    stored: int = 0
    furthest: int = 0
    pages: list[int] = field(default_factory=list)
    node: Node | None = None
    goes_on: bool = False
    shares: bool = True

    @property
    def number(self) -> int:
        """Of the request."""
        return self.served.request.number

    @property
    def missing(self) -> int:
        """Tokens to read before the next one comes."""
        return len(self.tokens) - self.stored


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass as it was.

    Args:
        tokens: read.
        pages: held by requests under way, each counted once.
        entries: in these pages.
    """

    tokens: int
    pages: int
    entries: int


class Serving:
    """A list of requests on its way through a model.

    Time is the machine's while there is work; where there is none, it goes on to the next arrival at once.

    Args:
        model: that reads kvbench's caches.
        cache: of all requests.
        engine: how much is read at once.
        scheduler: who is next.
        requests: in any order of arrival.
        now_s: a clock.
    """

    def __init__(
        self,
        model: nn.Module,
        cache: SharedCache,
        engine: Batcher,
        scheduler: Scheduler,
        requests: Sequence[Request],
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model, self.cache, self.engine, self.scheduler = model, cache, engine, scheduler
        self.pool, self.size = PagePool(cache.num_pages), cache.page_tokens
        self.tree = PrefixTree(self.pool, self.size) if scheduler.reuses else None
        self.served = {each.number: Served(request=each, arrival_s=each.arrival_s) for each in requests}
        first = (each for each in requests if each.follows is None)
        self.coming = sorted((each.arrival_s, each.number) for each in first)
        self.waiting: list[_Running] = []
        self.running: list[_Running] = []  # in the order in which they were let in
        self.passes: list[Pass] = []
        self._now_s, self._began_s, self._skipped_s = now_s, now_s(), 0.0
        self._copies: list[Copy] = []
        assert max(map(self._length, requests)) <= self.pool.num_pages * self.size, "Batcher.pages refuses these"

    def run(self, progress: Callable[[float], None] = lambda share: None) -> None:
        """Serve all requests."""
        while self.step():
            progress(sum(bool(each.token_s) for each in self.served.values()) / len(self.served))

    def step(self) -> bool:
        """Do one pass; return False where nothing is left to do."""
        self._arrive()
        if not self.waiting and not self.running:
            if not self.coming:
                return False
            self._skipped_s += max(0.0, self.coming[0][0] - self.clock_s)
            self._arrive()
        chosen = self._chosen()
        pieces = [Piece(pages=one.pages, start=one.stored, tokens=tokens) for one, tokens in chosen]
        for one, tokens in chosen:
            self._count(one, tokens)
        found = self._forward([one for one, _ in chosen], pieces)
        self.pool.release(copy.source for copy in self._copies)
        ended_s = self.clock_s
        self._note(sum(piece.tokens for piece in pieces))
        for one, token in found:
            one.tokens.append(token)
            one.served.tokens.append(token)
            one.served.token_s.append(ended_s)
            if len(one.served.tokens) == one.served.request.new_tokens:
                self._end(one, ended_s)
        return True

    def _count(self, one: _Running, tokens: int) -> None:
        """Count tokens as read, and as computed for a prompt unless they were generated since the last pass."""
        first, one.stored = one.stored, one.stored + tokens
        told = max(one.served.prompt_tokens, one.furthest)
        one.served.computed_tokens += max(0, min(one.stored, told) - first)
        one.furthest = max(one.furthest, one.stored)

    def _forward(self, chosen: Sequence[_Running], pieces: Sequence[Piece]) -> list[tuple[_Running, int]]:
        """Read the pieces, and return the next token of whoever has nothing left to read."""
        ids = [
            token for one, piece in zip(chosen, pieces, strict=True) for token in one.tokens[piece.start : piece.stop]
        ]
        ends = list(accumulate(piece.tokens for piece in pieces))
        done = [(one, end - 1) for one, end in zip(chosen, ends, strict=True) if one.missing == 0]
        self.cache.begin(pieces, self._copies)
        device = self.cache.view.device
        logits: Tensor = self.model(
            torch.tensor([ids], device=device),
            past_key_values=self.cache,
            use_cache=True,
            position_ids=self.cache.position_ids,
            logits_to_keep=torch.tensor([end for _, end in done] or [0], device=device),
        ).logits
        return list(zip((one for one, _ in done), logits[0].argmax(dim=-1).tolist(), strict=False))

    def _note(self, tokens: int) -> None:
        """Note a pass; the clock stands still meanwhile."""
        before = self.clock_s
        filled: dict[int, int] = {}
        for one in self.running:
            for at, page in enumerate(one.pages):
                filled[page] = max(filled.get(page, 0), min(self.size, one.stored - at * self.size))
        self.passes.append(Pass(tokens=tokens, pages=len(filled), entries=sum(filled.values())))
        self._skipped_s -= self.clock_s - before

    @property
    def clock_s(self) -> float:
        """Seconds since the start."""
        return self._now_s() - self._began_s + self._skipped_s

    def cancel(self, number: int) -> None:
        """Take a request back; one that is done stays as it is, and those that follow it never come."""
        for one in (each for each in (*self.waiting, *self.running) if each.number == number):
            one.served.is_cancelled = True
            self._let_go(one)
            (self.running if one in self.running else self.waiting).remove(one)
        for at, coming in enumerate(self.coming):
            if coming[1] == number:
                self.served[number].is_cancelled = True
                del self.coming[at]
                break

    # -- who is next --------------------------------------------------------------------------------------------

    def _arrive(self) -> None:
        """Let those wait whose time has come."""
        now = self.clock_s
        while self.coming and self.coming[0][0] <= now:
            arrival, number = self.coming.pop(0)
            served = self.served[number]
            before = [] if served.request.follows is None else self._whole(served.request.follows)
            tokens = [*before, *served.request.prompt]
            served.arrival_s, served.prompt_tokens = arrival, len(tokens)
            self.waiting.append(_Running(served=served, tokens=tokens))

    def _length(self, request: Request) -> int:
        """Return the tokens of a request in the end, with all that came before in its conversation."""
        before = 0 if request.follows is None else self._length(self.served[request.follows].request)
        return before + len(request.prompt) + request.new_tokens

    def _whole(self, number: int) -> list[int]:
        """Return a request's prompt and what was generated, with all that came before in its conversation."""
        served = self.served[number]
        before = [] if served.request.follows is None else self._whole(served.request.follows)
        return [*before, *served.request.prompt, *served.tokens]

    def _chosen(self) -> list[tuple[_Running, int]]:
        """Return who is part of the next pass, with how many tokens each."""
        left, chosen = self.engine.pass_tokens, list[tuple[_Running, int]]()
        self._copies = []
        for one in list(self.running):
            if left == 0:
                break
            if one not in self.running:  # it had to go meanwhile
                continue
            one.served.reused_tokens += self._match(one)
            tokens = min(one.missing, left)
            while not self._has_room(one, one.stored + tokens):
                last = self.running[-1]
                one.shares &= len(self.running) > 1
                self._preempt(last)
                if last is one:
                    break
            else:
                self._take(one, tokens)
                chosen.append((one, tokens))
                left -= tokens
        if self.waiting and left > 0 and len(self.running) < self.engine.max_running:
            for one in self._ordered():
                if left == 0 or len(self.running) == self.engine.max_running or not self._admits(one):
                    break
                tokens = min(one.missing, left)
                self._take(one, tokens)
                chosen.append((one, tokens))
                left -= tokens
        return chosen

    def _ordered(self) -> list[_Running]:
        by_number = {one.number: one for one in self.waiting}
        now = self.clock_s
        told = [
            Waiting(
                number=one.number,
                tokens=one.tokens,
                new_tokens=one.served.request.new_tokens - len(one.served.tokens),
                waited_s=now - one.served.arrival_s,
            )
            for one in sorted(self.waiting, key=lambda one: (one.served.arrival_s, one.number))
        ]
        return [by_number[each.number] for each in self.scheduler.order(told, self.tree)]

    def _admits(self, one: _Running) -> bool:
        """Let a request in, unless its prompt has no room beside a page for each of those under way."""
        gained = self._match(one)
        needed = -(-len(one.tokens) // self.size) - one.stored // self.size
        free = len(self.pool.free) + (0 if self.tree is None else self.tree.evictable())
        tokens = min(one.missing, self.engine.pass_tokens)
        if free < needed + len(self.running) or not self._has_room(one, one.stored + tokens):
            self._let_go(one)
            if self.running or not one.shares:
                return False
            one.shares = False
            return self._admits(one)
        one.served.reused_tokens += gained
        self.waiting.remove(one)
        self.running.append(one)
        if one.served.admitted_s is None:
            one.served.admitted_s = self.clock_s
        return True

    # -- pages --------------------------------------------------------------------------------------------------

    def _match(self, one: _Running) -> int:
        """Go on from entries that are there already, if there are more than the request has; return how many more."""
        if self.tree is None or one.missing < 2 or not one.shares:
            return 0
        node = self.tree.find(one.tokens[:-1])  # the last one is read in any case, for what comes after it
        if node.stop <= one.stored:
            return 0
        pages, gained = self.tree.pages_of(node), node.stop - one.stored
        self.pool.hold(pages)
        self.tree.lock(node)
        self._let_go(one)
        one.pages, one.stored, one.node, one.goes_on = pages, node.stop, node, node.stop % self.size > 0
        return gained

    def _has_room(self, one: _Running, stop: int) -> bool:
        """Return whether there are free pages for a request's tokens before `stop`; prefixes nobody needs go first."""
        needed = -(-stop // self.size) - len(one.pages) + one.goes_on
        if self.tree is not None:
            self.tree.evict(needed)
        return len(self.pool.free) >= needed

    def _take(self, one: _Running, tokens: int) -> None:
        """Take pages for new tokens, and a copy of the one they begin in where it is another's."""
        if one.goes_on:
            at, within = divmod(one.stored, self.size)
            copy = Copy(source=one.pages[at], target=self.pool.take(), slots=within)
            self._copies.append(copy)  # whose source is released after the pass
            one.pages[at], one.goes_on = copy.target, False
        stop = one.stored + tokens
        while len(one.pages) * self.size < stop:
            one.pages.append(self.pool.take())
        if stop <= one.served.prompt_tokens:
            self._keep(one, stop)

    def _keep(self, one: _Running, stop: int) -> None:
        """Have others find the entries of a request's first tokens."""
        if self.tree is None or not one.shares:
            return
        node = self.tree.insert(one.tokens[:stop], one.pages)
        self.tree.lock(node)
        if one.node is not None:
            self.tree.unlock(one.node)
        one.node = node

    def _let_go(self, one: _Running) -> None:
        """Take a request's pages away."""
        if self.tree is not None and one.node is not None:
            self.tree.unlock(one.node)
        self.pool.release(one.pages)
        one.pages, one.stored, one.node, one.goes_on = [], 0, None, False

    def _preempt(self, one: _Running) -> None:
        """Have a request wait again, and compute its entries anew unless they are still there then."""
        self._keep(one, one.stored)
        self._let_go(one)
        self.running.remove(one)
        self.waiting.append(one)
        one.served.preemptions += 1

    def _end(self, one: _Running, now_s: float) -> None:
        """Let a request go that has all its tokens, and those come that follow it."""
        self._keep(one, one.stored)
        self._let_go(one)
        self.running.remove(one)
        for each in self.served.values():
            if each.request.follows == one.number:
                insort(self.coming, (now_s + each.request.arrival_s, each.request.number))
