"""What must hold where entries that leave lie in pages elsewhere."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import Tensor

from kvbench.cache.kv_cache import KVCache
from kvbench.cache.placement.levels import Kind, Level, Memory, Policy
from kvbench.cache.placement.tiers import Traffic
from kvbench.columns import moved
from kvbench.engines.arm import Arm
from kvbench.engines.eager import Eager
from kvbench.models.view import view_of
from kvbench.types import RunShape
from tests.support.checks import BUDGET, NEW, PROMPT, assert_close, uniform
from tests.support.drive import drive, padded, positions
from tests.support.models import LAYERS, ids, model
from tests.support.page_loops import Loops, by_loops
from tests.support.parts import rand
from tests.support.placement import open_files
from tests.support.strategies import strategy

SIZE, MOST, PERIOD, SINKS = 3, 2, 3, 1  # of the setting in tests/support/settings/readers.py
ON_DISK = ("evicted.host=0.0",)


class FarLoops(Loops):
    """Sinks and recent tokens, the newest of what has left, and the best whole pages before it."""

    def visible(self, layer: int, group: int, queries: Tensor, keys: Tensor, now: int) -> list[int]:
        """Return the tokens that the queries [H / G, D] of one token read of the keys [T, D]."""
        if now < self.prompt:
            return list(range(now + 1))
        held = list(range(self.prompt))
        gone = [held.pop(SINKS) for _ in range(self.prompt - BUDGET)]
        for token in range(self.prompt, now + 1):
            if len(held) == BUDGET + PERIOD:
                gone += [held.pop(SINKS) for _ in range(PERIOD)]
            held.append(token)
        whole = len(gone) // self.size
        pages = [gone[at * self.size : (at + 1) * self.size] for at in range(whole)]
        merit = [self._merit(queries.tolist(), keys[page].tolist()) for page in pages]
        best = sorted(range(whole), key=lambda page: -merit[page])[: self.most]
        read = sorted([*held, *gone[whole * self.size :], *(at for page in best for at in pages[page])])
        self.read.setdefault((layer, group), []).append(read)
        return read


def equals_loops(model_name: str, *overrides: str, lengths: Sequence[int] = (PROMPT,), new: int = NEW) -> None:
    """Logits of every row equal those of loops over what the row reads."""
    made = strategy("tiered", *overrides, tokens=BUDGET)
    texts = [ids(160 + row, 1, length + new)[0] for row, length in enumerate(lengths)]
    got = drive(model(model_name), made, padded(texts), RunShape(prompt_lengths=tuple(lengths), new_tokens=new))
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        loops = FarLoops(size=SIZE, most=MOST, prompt=length)
        assert_close(got.logits[row, max(lengths) - length :], by_loops(model_name, text[None], loops)[0])
        read = [(len(seen), at) for steps in loops.read.values() for at, seen in enumerate(steps)]
        assert any(seen <= length + at for seen, at in read), "everything was read: the comparison proves nothing"


def levels_change_nothing(model_name: str) -> None:
    """Wherever pages lie and whichever leave first, logits are the same bit for bit."""
    tokens = ids(161, 2, PROMPT + NEW)
    found = [
        drive(model(model_name), strategy("tiered", *where, tokens=BUDGET), tokens, uniform(rows=2)).logits
        for where in (("evicted.at_hand=100",), ("evicted.at_hand=1",), ON_DISK, ("evicted.policy=fifo", *ON_DISK))
    ]
    for other in found[1:]:
        assert torch.equal(found[0], other)


def every_entry_is_held_once(model_name: str, name: str = "tiered", *overrides: str) -> None:
    """At every step the device and the tiers together hold every token once, in every layer and head."""
    made = strategy(name, *overrides, tokens=BUDGET)
    driven = drive(model(model_name), made, ids(162, 2, PROMPT + NEW), uniform(rows=2))
    assert driven.cache.bytes_on("host") > 0
    for step, layers in enumerate(driven.held):
        for held in layers:
            for row in range(2):
                assert all(kept == list(range(PROMPT + step)) for kept in positions(held[row]))


def pages_move_as_often_as_they_miss(where: Sequence[str]) -> None:
    """A page goes down once, when it is full; what comes up are the pages a step read that were not at hand."""
    made = strategy("tiered", *where, tokens=BUDGET)
    tokens, run, network = ids(163, 2, PROMPT + NEW), uniform(rows=2), model("llama_gqa")
    view = view_of(network)
    shape = view.layers[0]
    page = SIZE * (shape.key_dim + shape.value_dim) * view.dtype.itemsize
    lines = 2 * shape.kv_heads * LAYERS
    seen: list[Traffic] = []

    def watch(cache: KVCache, columns: int) -> None:
        seen.append(cache.traffic())
        traffic = seen[-1]
        assert traffic.up == (traffic.asked - traffic.hits) * page
        gone = PROMPT - BUDGET + (columns - PROMPT) // PERIOD * PERIOD
        assert traffic.down == gone // SIZE * page * lines
        assert traffic.written == (traffic.down if made.evicted.host < 1 else 0)  # type: ignore[attr-defined]
        assert traffic.read <= traffic.up

    drive(network, made, tokens, run, watch=watch)
    steps = [(late.asked - early.asked, late.hits - early.hits) for early, late in pairwise(seen)]
    assert all(asked == lines * MOST for asked, _ in steps)
    assert any(hits < asked for asked, hits in steps), "nothing was missed: this proves nothing"
    assert any(hits > 0 for _, hits in steps), "nothing was at hand: this proves nothing"


def a_link_takes_what_moved_and_waits_where_pages_miss() -> None:
    """A step's bytes over the bandwidth, and the latency of each layer that lacked a page; nothing where it is real."""
    link = ("placement.link=modelled", "placement.link_gb_per_s=2", "placement.link_latency_us=5")
    network, tokens, run = model("llama_gqa"), ids(166, 1, PROMPT + NEW), uniform()
    made, real = (strategy("tiered", *settings, tokens=BUDGET) for settings in (link, ()))
    arm, other = (
        Arm(name="strategy", model=network, view=view_of(network), strategy=each, engine=Eager(prefill_chunk=0))
        for each in (made, real)
    )
    seen: list[list[Traffic]] = []
    waits = []

    def watch(cache: KVCache, columns: int) -> None:
        seen.append([layer.traffic() for layer in cache.layers])
        if len(seen) == 1:
            return
        early, late = ([vars(each) for each in layers] for layers in seen[-2:])
        steps = [
            {name: after[name] - before[name] for name in after} for before, after in zip(early, late, strict=True)
        ]
        num_bytes = sum(step["up"] + step["down"] for step in steps)
        waits.append(sum(step["hits"] < step["asked"] for step in steps))
        before = Traffic()
        for layer in seen[-2]:
            before.add(layer)
        row = moved(arm, cache, before, 1)
        assert row["modelled_link_ms"] == pytest.approx(num_bytes / 2e9 * 1e3 + waits[-1] * 5e-3)
        assert moved(other, cache, before, 1)["modelled_link_ms"] is None

    drive(network, made, tokens, run, watch=watch)
    assert 0 < sum(waits) < LAYERS * NEW, "all steps, or none, wait for the link: this proves nothing"


def bytes_lie_where_they_were_said_to(where: Sequence[str]) -> None:
    """Bytes on the device, with the host and on disk are the closed forms."""
    made, view = strategy("tiered", *where, tokens=BUDGET), view_of(model("llama_gqa"))
    run = RunShape(prompt_lengths=(PROMPT, 17), new_tokens=NEW)
    texts = [ids(164 + row, 1, length + NEW)[0] for row, length in enumerate(run.prompt_lengths)]

    def watch(cache: KVCache, columns: int) -> None:
        want = made.bytes_elsewhere(view, run)
        assert (cache.bytes_on("host"), cache.bytes_on("disk")) == (want.host, want.disk)
        assert want.host > 0
        assert (want.disk > 0) == (where == ON_DISK)
        assert cache.allocated_bytes() == made.allocated_bytes(view, run)
        held = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in cache.tensors()}.values())
        assert held == cache.allocated_bytes() + cache.bytes_on("host")

    drive(model("llama_gqa"), made, padded(texts), run, watch=watch)


class SlowFrames:
    """Which pages of a row are at hand, by lists."""

    def __init__(self, frames: int, policy: Policy) -> None:
        self.frames, self.policy = frames, policy
        self.here: list[int] = []  # in the order they leave

    def come(self, page: int, busy: Sequence[int]) -> None:
        """Let a page come, and if there is no room another leave."""
        if len(self.here) == self.frames:
            self.here.remove(next(each for each in self.here if each not in busy))
        self.here.append(page)

    def read(self, pages: Sequence[int]) -> int:
        """Read pages and return how many were at hand."""
        hits = [page for page in pages if page in self.here]
        for page in pages:
            if page not in hits:
                self.come(page, pages)
        for page in pages if self.policy == "lru" else ():
            self.here.remove(page)
            self.here.append(page)
        return len(hits)


def frames_follow_their_policy(policy: Policy) -> None:
    """Over a random walk every page read is the one that was written, and as many are at hand as by plain lists."""
    rng, pages, frames, most = random.Random(5), 24, 6, 3
    traffic, like = Traffic(), torch.zeros(1)
    data = rand(1, pages, 2, 4, seed=1).float()
    below = Memory(Kind(like, 1, pages, [(2, 4)]), traffic)
    level = Level(
        Kind(like, 1, pages, [(2, 4)]), frames=frames, policy=policy, tier="device", below=below, traffic=traffic
    )
    slow = SlowFrames(frames, policy)
    for page in range(pages):
        level.put(page, [data[:, page : page + 1]])
        slow.come(page, ())
    hits = 0
    for _ in range(300):
        wanted = rng.sample(range(pages) if rng.random() < 0.3 else range(8), most)
        (got,) = level.read(torch.zeros(most, dtype=torch.int64), torch.tensor(wanted))
        assert torch.equal(got, data[0, wanted])
        hits += slow.read(wanted)
        assert traffic.hits == hits
    assert 0 < traffic.hits < traffic.asked == 300 * most


def often_read_pages_stay() -> None:
    """By lfu a page that was read three times outlives one that came later."""
    traffic, like, data = Traffic(), torch.zeros(1), rand(1, 3, 1, 2, seed=2).float()
    below = Memory(Kind(like, 1, 3, [(1, 2)]), traffic)
    level = Level(Kind(like, 1, 3, [(1, 2)]), frames=2, policy="lfu", tier="device", below=below, traffic=traffic)
    level.put(0, [data])
    row = torch.zeros(1, dtype=torch.int64)
    for page, is_hit in ((1, True), (1, True), (0, False), (1, True), (2, False), (1, True)):
        before = traffic.hits
        (got,) = level.read(row, torch.tensor([page]))
        assert torch.equal(got[0], data[0, page])
        assert (traffic.hits > before) == is_hit, page


def forgotten_pages_leave_their_frames() -> None:
    """A page that is written again takes the frame it had, and no other page's."""
    traffic, like, data = Traffic(), torch.zeros(1), rand(1, 4, 1, 2, seed=3).float()
    below = Memory(Kind(like, 1, 4, [(1, 2)]), traffic)
    level = Level(Kind(like, 1, 4, [(1, 2)]), frames=4, policy="lru", tier="device", below=below, traffic=traffic)
    level.put(0, [data])
    level.forget(2)
    level.put(2, [-data[:, 2:3]])
    (got,) = level.read(torch.zeros(3, dtype=torch.int64), torch.arange(3))
    assert torch.equal(got, torch.cat([data[0, :2], -data[0, 2:3]]))
    assert traffic.hits == 3


def cleanup_lets_go() -> None:
    """No name is ever seen in the folder of a cache, and after cleaning up no file is open."""
    with TemporaryDirectory() as name:
        _cleanup_lets_go(Path(name))


def _cleanup_lets_go(folder: Path) -> None:
    made = strategy("tiered", *ON_DISK, f"evicted.folder={folder}", tokens=BUDGET)
    cache = drive(model("llama_gqa"), made, ids(165, 1, PROMPT + NEW), uniform()).cache
    assert list(folder.iterdir()) == []
    assert open_files(folder)
    cache.cleanup()
    assert not open_files(folder)
