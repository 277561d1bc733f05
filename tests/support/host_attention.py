"""What must hold where the host attends to the entries in its memory."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from kvbench.cache import plan
from kvbench.cache.kv_cache import KVCache
from kvbench.cache.placement.rooms import NOTHING_BYTES
from kvbench.cache.placement.tiers import Traffic
from kvbench.models.view import view_of
from kvbench.strategies.base import CacheStrategy
from kvbench.types import ModelView, RunShape
from tests.support.checks import BUDGET, NEW, PROMPT, assert_close, drive_rows, uniform
from tests.support.drive import Driven, drive
from tests.support.models import ids, model
from tests.support.placement import KIVI
from tests.support.storage import storages_are_exact_and_reported
from tests.support.strategies import strategy

THERE = ("strategy/placement=split", "placement.attend=host")
RAGGED = (PROMPT, 17, PROMPT)


def divided(*overrides: str, name: str = "baseline", codec: str = "dense") -> CacheStrategy:
    """Return a method whose entries are attended to where they lie."""
    return resident(name, codec, *THERE, *overrides)


def resident(name: str, codec: str, *overrides: str) -> CacheStrategy:
    """Return a method whose entries are written by a codec, and lie on the device unless it is said where."""
    small = KIVI if codec.startswith("kivi") else ()
    return strategy(name, f"strategy/codec={codec}", *overrides, *small, tokens=BUDGET)


def same_as_resident(
    model_name: str,
    *overrides: str,
    name: str = "baseline",
    codec: str = "dense",
    lengths: Sequence[int] = (PROMPT,),
    chunks: Sequence[int] = (),
    steps: Sequence[int] = (),
) -> None:
    """Logits are those of the cache on the device, but for rounding, and only queries and answers moved for them."""
    want = drive_rows(resident(name, codec), model_name, lengths, chunks=chunks)
    got = drive_rows(divided(*overrides, name=name, codec=codec), model_name, lengths, chunks=chunks, steps=steps)
    _assert_same(got, want, lengths)


def _assert_same(got: Driven, want: Driven, lengths: Sequence[int]) -> None:
    assert got.cache.traffic().waits > 0, "the host attended to nothing"
    for row, length in enumerate(lengths):
        assert_close(got.logits[row, max(lengths) - length :], want.logits[row, max(lengths) - length :])


def native_is_as_near_as_resident(*overrides: str, codec: str) -> None:
    """In float32, read by the native kernel, logits are as near to those in float64 as a cache's on the device."""
    run, text = uniform(rows=3), ids(53, 3, PROMPT + NEW)
    asked = ((resident("baseline", codec), torch.float64), (resident("baseline", codec), torch.float32))
    made = divided(*overrides, codec=codec)
    assert made.codec.kernel_on(torch.device("cpu"), torch.float32) == "native"
    exact, here, there = (
        drive(model("llama_gqa", dtype), each, text, run).logits.double()
        for each, dtype in (*asked, (made, torch.float32))
    )
    error = (here - exact).abs().max()
    assert 0 < error < 1e-5
    assert (there - exact).abs().max() < 2 * error


def grown_equals_resident(*overrides: str, codec: str = "dense", lengths: Sequence[int] = RAGGED) -> None:
    """The same where room is made again and again, and the parts are divided anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "GROW_LEAST", 4)
        want = drive_rows(resident("baseline", codec), "llama_gqa", lengths, new=None)
        got = drive_rows(divided(*overrides, codec=codec), "llama_gqa", lengths, new=None)
    slots = got.cache.layers[0].stores[0][1].slots
    assert slots.capacity > PROMPT + 4, "room was not made twice: this proves nothing"
    _assert_same(got, want, lengths)


def moves_what_the_formula_says(*overrides: str, codec: str = "dense", rows: int = 3, prompt: int = PROMPT) -> None:
    """A step takes queries, and new tokens that lie there, down, and brings answers up, whatever the context.

    An answer is the output and the log of the sum of its weights, of each row that the host has a part of.
    """
    made, run = divided(*overrides, codec=codec), uniform(prompt, rows=rows)
    view = view_of(model("llama_gqa"))
    query, token, answer = _step_bytes(made, view, run)
    before, seen_before = Traffic(), [0]

    def watch(cache: KVCache, seen: int) -> None:
        now = cache.traffic()
        if seen > prompt:
            down, up = now.down - before.down, now.up - before.up
            assert down == query + token, f"{down} bytes went down at {seen}, {query} + {token} were said"
            assert up == answer, f"{up} bytes came up at {seen}, {answer} were said"
        before.__dict__.update(now.__dict__)
        seen_before[0] = seen

    drive(model("llama_gqa"), made, ids(51, rows, prompt + NEW), run, watch=watch)
    assert seen_before[0] == prompt + NEW


def _step_bytes(made: CacheStrategy, view: ModelView, run: RunShape) -> tuple[int, int, int]:
    """Return the bytes of the queries, the new tokens and the answers of a step, over all layers."""
    shares = made.plans(view, run)[0].place.shares  # type: ignore[union-attr]
    by_row, size = shares.axis == "batch", view.dtype.itemsize
    rows = round(run.batch_size * shares.host) if by_row else run.batch_size
    stays = by_row or shares.host == 1  # tokens of rows that lie there; of all, where the newest end does
    query = sum(rows * layer.query_heads * layer.key_dim * size for layer in view.layers)
    token = sum(rows * layer.kv_heads * (layer.key_dim + layer.value_dim) * size * stays for layer in view.layers)
    wide = torch.promote_types(view.dtype, torch.float32).itemsize
    answer = sum(rows * layer.query_heads * (layer.value_dim * size + wide) for layer in view.layers)
    return query, token, answer


def bytes_lie_where_they_were_said_to(
    *overrides: str, name: str = "baseline", codec: str = "dense", rows: int = 3
) -> None:
    """Each tier holds what the closed forms say: what a resident cache holds, what the host is told, and no buffer."""
    made, here, run = divided(*overrides, name=name, codec=codec), resident(name, codec), uniform(rows=rows)
    view = view_of(model("llama_gqa"))
    said = made.bytes_elsewhere(view, run)
    cache = drive(model("llama_gqa"), made, ids(52, rows, PROMPT + NEW), run).cache
    storages_are_exact_and_reported(cache)
    assert cache.bytes_on("host") == said.host > 0
    assert cache.bytes_on("disk") == said.disk == 0
    assert cache.allocated_bytes() == made.allocated_bytes(view, run)
    seen = sum(t.nbytes for t in cache.tensors() if t.dtype == torch.bool)
    whole = here.allocated_bytes(view, run)
    assert cache.allocated_bytes() + cache.bytes_on("host") == whole + seen + NOTHING_BYTES


def a_link_is_passed_both_ways() -> None:
    """A layer that asks the host waits for the way down and the way up; one that fetches, for the way up."""
    link = ("placement.link=modelled", "placement.link_gb_per_s=2", "placement.link_latency_us=5")
    before, after = Traffic(up=1_000, down=10, fetches=4), Traffic(up=3_000, down=2_010, fetches=24)
    moved = 4_000 / 2e9 * 1e3
    assert divided(*link).placement.link_ms(before, after, steps=10) == pytest.approx((moved + 2 * 20 * 5e-3) / 10)
    fetched = divided(*link, "placement.attend=device").placement.link_ms(before, after, steps=10)
    assert fetched == pytest.approx((moved + 20 * 5e-3) / 10)
