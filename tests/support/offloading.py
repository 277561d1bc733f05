"""What must hold for entries that go to a ring on the host and may come back."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kvbench.cache.layer import CacheLayer
from kvbench.cache.offloading import Offloading
from kvbench.cache.placement.areas import InFile
from kvbench.cache.ring import BACK, Form, Ring, Rows
from kvbench.models.view import view_of
from kvbench.strategies.evicted.offloaded import Offloaded
from kvbench.types import RunShape
from tests.support.checks import BUDGET, NEW, PROMPT, assert_close, uniform
from tests.support.drive import drive, positions
from tests.support.merging import GROUPS, LENGTHS, SCALE, Text, decode, layer_of, method, read, text
from tests.support.models import HEADS, LAYERS, WIDTH, ids, model
from tests.support.slow_offloading import Head
from tests.support.strategies import composed, strategy

LOW = "evicted.importance_threshold=0.04"  # much comes back
LONG = 40  # tokens that follow a prompt, so that some come back twice


def offloaded(*overrides: str, name: str = "fixed_size_offload", budget: int = BUDGET) -> CacheLayer:
    """Return an empty layer whose entries go to the host."""
    return layer_of(method(name, *overrides, budget=budget), (PROMPT,), LONG)


def keeper_of(layer: CacheLayer, row: int = 0) -> Offloading:
    """Return what keeps the rows of a layer, those of a row of the batch where these are apart."""
    keeper = layer.stores[min(row, len(layer.stores) - 1)][1].keeper
    assert isinstance(keeper, Offloading)
    return keeper


def on_host(layer: CacheLayer, head: int, row: int = 0) -> list[int]:
    """Return the positions on the host of one head, in any order."""
    there = keeper_of(layer, row).elsewhere()
    mine = there[row if len(there) > 1 else 0]
    return [at for at in mine[head % len(mine)].tolist() if at >= 0]


# -- plain loops ----------------------------------------------------------------------------------------------------


def attention_of(given: Text, row: int, head: int, at: int, keys: Tensor, bias: Tensor) -> Tensor:
    """Return the weights [H / G, m] that the queries of a token pay keys [m, D]."""
    share = HEADS // GROUPS
    return ((given.query[row, head * share : (head + 1) * share, at] @ keys.T) * SCALE + bias).softmax(dim=-1)


def offloading_equals_plain_loops(
    *overrides: str, name: str = "fixed_size_offload", lengths: Sequence[int] = (PROMPT,), seed: int = 3
) -> None:
    """Where every position is, what is remembered of it and what attention makes of it are those of lists."""
    given = text(seed=seed, rows=len(lengths), tokens=PROMPT + LONG)
    made = method(name, *overrides)
    assert isinstance(made.evicted, Offloaded)
    window = vars(made.scorer)["importance_window"]
    layer = layer_of(made, lengths, LONG)
    read(layer, given)
    budget = BUDGET - made.evicted.num_reserved
    heads: dict[tuple[int, int], Head] = {}
    for row, length in enumerate(lengths):
        pad = PROMPT - length
        for head in range(GROUPS):
            rows = keeper_of(layer, row).ring.form.rows
            plain = heads[row, head] = Head(made.evicted, window, budget, rows)
            keys, causal = given.key[row, head, pad:PROMPT], torch.zeros(length, length).fill_(-torch.inf).triu(1)
            each = [attention_of(given, row, head, pad + at, keys, causal[at]).mean(dim=0) for at in range(length)]
            plain.prompt(torch.stack(each).sum(dim=0).tolist())
            assert_is_where(layer, row, head, plain)
    for step, at in enumerate(range(PROMPT, PROMPT + LONG)):
        out = decode(layer, given, at + 1)
        for (row, head), plain in heads.items():
            pad = PROMPT - lengths[row]
            held = [*plain.held, at - pad]
            key, value = (t[row, head, [each + pad for each in held]] for t in (given.key, given.value))
            bias = torch.zeros(len(held), dtype=key.dtype)
            if plain.fallen:
                fallen = [each + pad for each in plain.fallen]
                key = torch.cat([key, given.key[row, head, fallen].mean(dim=0)[None]])
                value = torch.cat([value, given.value[row, head, fallen].mean(dim=0)[None]])
                weight = torch.tensor([len(fallen)], dtype=key.dtype).log()
                bias = torch.cat([bias, weight if made.evicted.summary else weight - torch.inf])
            weights = attention_of(given, row, head, at, key, bias)
            share = HEADS // GROUPS
            assert_close(out[row, head * share : (head + 1) * share, 0], weights @ value)
            plain.step(at - pad, dict(zip(held, weights.mean(dim=0).tolist(), strict=False)), step + 1)
            assert_is_where(layer, row, head, plain)
    if made.evicted.restore_every > 0:
        assert sum(plain.returned for plain in heads.values()) > 3, "nothing came back: this proves nothing"


def assert_is_where(layer: CacheLayer, row: int, head: int, plain: Head) -> None:
    """Hold the places of all positions, and what is remembered of them, to lists."""
    held = layer.held_positions()[row]
    assert positions(held)[head % len(held)] == sorted(plain.held)
    assert sorted(on_host(layer, head, row)) == sorted(plain.host)
    keeper = keeper_of(layer, row)
    at = keeper.ring.here().unflatten(0, (-1, GROUPS))[0 if len(layer.stores) > 1 else row, head]
    mean = keeper._scorer.importance(keeper.ring.beside["memory"])  # type: ignore[union-attr]
    mean = mean.unflatten(0, (-1, GROUPS))[0 if len(layer.stores) > 1 else row, head]
    for place, position in enumerate(at.tolist()):
        if position >= 0:
            assert float(mean[place]) == pytest.approx(plain.host[position].mean, rel=1e-5, abs=1e-7)
    order = keeper.ring.arrival.unflatten(0, (-1, GROUPS))[0 if len(layer.stores) > 1 else row, head]
    arrived = sorted((int(when), position) for when, position in zip(order, at.tolist(), strict=True) if position >= 0)
    assert [position for _, position in arrived] == list(plain.host), "the order of arrival is another"


# -- conservation ---------------------------------------------------------------------------------------------------


def every_position_is_somewhere_once(*overrides: str, name: str = "fixed_size_all") -> None:
    """At every step the positions on the device, in the ring and in the summary are all that were seen, each once."""
    given = text(seed=12, rows=2, tokens=PROMPT + LONG)
    made = method(name, LOW, *overrides)
    assert isinstance(made.evicted, Offloaded)
    layer, most = layer_of(made, LENGTHS, LONG), BUDGET - made.evicted.num_reserved
    read(layer, given)
    for seen in range(PROMPT, PROMPT + LONG + 1):
        for row, length in enumerate(LENGTHS):
            slots = layer.stores[row][1].slots
            for head, held in enumerate(positions(layer.held_positions()[row])):
                there = on_host(layer, head, row)
                assert len(held) == most, f"{len(held)} entries are held after {seen} tokens"
                assert len(there) <= made.evicted.offload_size
                everything = [*held, *there]
                assert len(set(everything)) == len(everything), "a position is in two places"
                assert set(everything) <= set(range(seen - PROMPT + length))
                if made.evicted.summary:
                    assert slots.log_weight is not None
                    summed = round(float(slots.log_weight[0, head, 0].exp()))
                    assert len(everything) + summed == seen - PROMPT + length, "a position is nowhere"
        if seen < PROMPT + LONG:
            decode(layer, given, seen + 1)
    assert layer.traffic().up > 0, "nothing came back: this proves nothing"


# -- what rows are --------------------------------------------------------------------------------------------------


def rows_are_what_they_were(name: str) -> None:
    """What never left is exact to the bit; what came back is exact with 16 bits, and else within half a step of it.

    A row that comes back again is what it was the first time, to the bit.
    """
    given, bits = text(seed=13, tokens=PROMPT + LONG), composed(name).evicted.bits  # type: ignore[attr-defined]
    if bits < 16:  # packing what was packed changes nothing in wide numbers
        given = Text(query=given.query.bfloat16(), key=given.key.bfloat16(), value=given.value.bfloat16())
    layer = offloaded(LOW, name=name)
    read(layer, given)
    before = [set(held) for held in positions(layer.held_positions()[0])]
    first: dict[tuple[int, int], Tensor] = {}
    again = 0
    for seen in range(PROMPT, PROMPT + LONG):
        decode(layer, given, seen + 1)
        slots = layer.stores[0][1].slots
        for head, held in enumerate(positions(layer.held_positions()[0])):
            for at in held:
                slot = slots.position[0, head].tolist().index(at)
                row = torch.cat([p.read(slots.filled)[0, head, slot] for p in (slots.keys, slots.values)])
                true = torch.cat([given.key[0, head, at], given.value[0, head, at]])
                if at not in before[head] and at != seen:
                    again += (head, at) in first
                    assert torch.equal(first.setdefault((head, at), row), row), "a row that came back is another one"
                if bits == 16 or (head, at) not in first:
                    assert torch.equal(row, true)
                else:
                    assert bool(((row - true).double().abs() <= bound(true.double(), bits)).all())
            before[head] = set(held)
    assert again > 0, "nothing came back twice: this proves nothing"


def bound(true: Tensor, bits: int) -> Tensor:
    """Return how far a key and a value [2 D] may be from what they were: half a step, float16 scales, and bfloat16."""
    sides = true.view(2, -1)
    if bits == 8:
        step = sides.abs().amax(dim=1) / 127
        far = step / 2 + 128 * step * 2**-11
    else:
        low, high = sides.amin(dim=1), sides.amax(dim=1)
        far = (high - low) / 30 + (high - low) * 2**-10 + low.abs() * 2**-10
    return far.repeat_interleave(sides.shape[1]) + 2**-8 * sides.abs().amax()


def a_ring_is_first_in_first_out() -> None:
    """Random pushes, some of rows that were back, against a list; a row is what was written of it first."""
    generator = torch.Generator().manual_seed(1)
    form = Form(sets=2, heads=1, rows=6, widths=(3, 2), dtype=torch.float64, packing=None, beside={})
    ring, fresh = Ring(form, None, is_pinned=False), 0
    lists: tuple[list[int], list[int]] = ([], [])
    back: tuple[list[int], list[int]] = ([], [])
    rows_of: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for turn in range(120):
        position = torch.full((2, 1), -1, dtype=torch.int32)
        for each in range(2):
            if back[each] and torch.rand((), generator=generator) < 0.4:
                position[each, 0] = back[each].pop(0)
            elif torch.rand((), generator=generator) < 0.8:
                position[each, 0] = fresh = fresh + 1
        keys, values = (torch.randn(2, 1, 1, d, generator=generator, dtype=torch.float64) for d in (3, 2))
        for each, at in enumerate(position[:, 0].tolist()):  # what comes again is another row, and the first one counts
            rows_of.setdefault((each, at), (keys[each, 0, 0].clone(), values[each, 0, 0].clone()))
        (fallen,) = ring.push(Rows(keys, values, position, {}), catches=True)
        for each, at in enumerate(position[:, 0].tolist()):
            if at >= 0:
                lists[each].append(at)
            want = lists[each].pop(0) if len(lists[each]) + len(back[each]) > form.rows else -1
            assert int(fallen.position[each, 0]) == want
            here = [int(p) for _, p in sorted(zip(ring.arrival[each], ring.here()[each], strict=True)) if p >= 0]
            assert here == lists[each]
            for at in here:
                got = ring.read(torch.tensor([each]), (ring.position[each] == at).nonzero()[0])
                assert torch.equal(got.keys[0, 0, 0], rows_of[each, at][0])
                assert torch.equal(got.values[0, 0, 0], rows_of[each, at][1])
            if turn % 3 == 0 and len(lists[each]) > 3:
                back[each].append(lists[each].pop(1))
                ring.lend(torch.tensor([each]), (ring.position[each] == back[each][-1]).nonzero()[0])
                assert int(ring.arrival[each].max()) >= BACK


def an_entry_that_mattered_comes_back() -> None:
    """With one place a time the entry that mattered most is first, then the next; one below the threshold never is."""
    layer, given = offloaded("evicted.max_restored=1", "evicted.importance_threshold=2"), text(seed=14)
    read(layer, given)
    keeper = keeper_of(layer)
    best, second, below = (sorted(on_host(layer, 0))[rank] for rank in (4, 1, 6))
    memory = keeper.ring.beside["memory"].view(torch.float32)
    for position, mean in ((best, 5.0), (second, 3.0), (below, 1.9)):
        place = keeper.ring.position[0].tolist().index(position)
        memory[0, place] = torch.tensor([mean, 100.0])
    keeper._may_return = keeper._any_matters()
    arrived = []
    for seen in range(PROMPT, PROMPT + 4):
        before = set(positions(layer.held_positions()[0])[0])
        decode(layer, given, seen + 1)
        held = positions(layer.held_positions()[0])[0]
        assert len(held) == BUDGET
        arrived.append(set(held) - before - {seen})
    assert arrived[:2] == [{best}, {second}]
    assert set().union(*arrived) == {best, second}


# -- bytes ----------------------------------------------------------------------------------------------------------


def bytes_of_the_ring(name: str, *overrides: str, new: int | None = NEW) -> None:
    """Host and disk hold what the closed forms say, and those are what a row takes, counted by hand."""
    made, run = strategy(name, *overrides, tokens=BUDGET), RunShape(prompt_lengths=LENGTHS, new_tokens=new)
    rules, view = made.evicted, view_of(model("llama_gqa"))
    assert isinstance(rules, Offloaded)
    side = {16: WIDTH * 8, 8: WIDTH + 2, 4: WIDTH // 2 + 4}[rules.bits]  # float64, or codes with what they stand for
    rows = [min(rules.offload_size, length + (new or 10**6)) for length in LENGTHS]
    written = LAYERS * GROUPS * sum(rows) * 2 * side
    beside = LAYERS * GROUPS * sum(rows) * (4 + 4 + 8 + 8)  # position, arrival, score, what is remembered
    said = made.bytes_elsewhere(view, run)
    assert (said.host, said.disk) == ((beside, written) if rules.mmap else (beside + written, 0))
    cache = drive(model("llama_gqa"), made, ids(42, len(LENGTHS), PROMPT + NEW), run).cache
    assert (cache.bytes_on("host"), cache.bytes_on("disk")) == (said.host, said.disk)
    alone = replace(made, evicted=composed("fixed_size", "strategy/evicted=drop").evicted)
    if not rules.summary:
        same = uniform(rows=2)  # rows of one length, which are stored together either way
        assert made.allocated_bytes(view, same) == alone.allocated_bytes(view, same)


def what_goes_down_does_not_depend_on_the_context() -> None:
    """A step sends the rows that leave, a text of any length before it."""
    row = 2 * WIDTH * 8 + 4 + 8 + 8  # key and value in float64, position, score, what is remembered
    for prompt in (PROMPT, 8 * PROMPT):
        made = strategy("fixed_size_offload", "evicted.restore_every=0", tokens=BUDGET)
        sent: list[int] = []
        drive(
            model("llama_gqa"),
            made,
            ids(43, 2, prompt + NEW),
            uniform(prompt, rows=2),
            watch=lambda cache, seen, sent=sent: sent.append(cache.traffic().down),  # type: ignore[misc]
        )
        assert {later - earlier for earlier, later in pairwise(sent)} == {2 * LAYERS * GROUPS * row}
        assert sent[0] == (prompt - BUDGET) * 2 * LAYERS * GROUPS * row


# -- threads and files ----------------------------------------------------------------------------------------------


def threads_change_nothing() -> None:
    """However slowly rows are written behind the step, outputs and places are those of writing within it."""
    given, outs = text(seed=15, tokens=PROMPT + LONG), []
    push = Ring.push

    def slow(self: Ring, rows: Rows, *, catches: bool) -> list[Rows]:
        time.sleep(0.005)
        return push(self, rows, catches=catches)

    for count in (0, 2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Ring, "push", slow)
            layer = offloaded(LOW, f"evicted.worker_threads={count}", "evicted.offload_size=7", name="fixed_size_int8")
            read(layer, given)
            outs.append((decode(layer, given), [sorted(on_host(layer, head)) for head in range(GROUPS)]))
            assert layer.traffic().up > 0
    assert torch.equal(outs[0][0], outs[1][0])
    assert outs[0][1] == outs[1][1]


def writing_threads() -> list[threading.Thread]:
    """Return the threads that write behind steps."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("write")]


def cleanup_ends_everything(folder: Path, *, explicitly: bool) -> None:
    """While a cache lives its file has no name; once it is cleaned up, or gone, no file is open and no thread runs."""
    others = set(writing_threads())
    made = strategy("fixed_size_all", f"evicted.folder={folder}", "evicted.worker_threads=2", tokens=BUDGET)
    cache = drive(model("llama_gqa"), made, ids(44, 1, PROMPT + NEW), uniform()).cache
    assert cache.bytes_on("disk") > 0
    assert cache.traffic().written > 0
    assert list(folder.iterdir()) == []
    assert mapped_in(folder)
    threads = set(writing_threads()) - others
    assert 1 <= len(threads) <= 2
    if explicitly:
        cache.cleanup()
        assert cache.bytes_on("disk") == cache.bytes_on("host") == 0
    else:
        del cache
    gc.collect()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert not mapped_in(folder)


def mapped_in(folder: Path) -> bool:
    """Return whether a file of a folder is mapped into this process, or open."""
    opened = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
    return str(folder) in Path("/proc/self/maps").read_text() or any(str(folder) in path for path in opened)


def no_room(folder: Path) -> None:
    """A folder without room, or that is none, is an error that names the keys."""
    for missing in (folder / "none", Path("/dev/null")):
        with pytest.raises(ValueError, match=r"strategy\.evicted\.folder"):
            InFile((1, 2), torch.float32, str(missing))
    room = os.statvfs(folder)
    too_long = room.f_bavail * room.f_frsize + 2**40
    with pytest.raises(ValueError, match=r"cannot be kept in .*strategy\.evicted\.offload_size"):
        InFile((too_long,), torch.uint8, str(folder))
    assert list(folder.iterdir()) == []
