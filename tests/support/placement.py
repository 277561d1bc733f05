"""What must hold for entries that lie elsewhere between the steps that read them."""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvbench.cache.codecs.base import Room
from kvbench.cache.kv_cache import KVCache
from kvbench.cache.placement import home, mover
from kvbench.cache.placement.rooms import Shares, rooms_of
from kvbench.cache.placement.tiers import OnDevice, OnDisk, OnHost, Traffic
from kvbench.columns import waited
from kvbench.models.view import view_of
from kvbench.strategies.base import CacheStrategy
from kvbench.types import DECODE, ModelView, Projection, RunShape
from tests.support.checks import NEW, PROMPT, assert_close, drive_rows, uniform
from tests.support.drive import drive
from tests.support.models import WIDTH, attention, ids, model
from tests.support.strategies import composed

KIVI = ("codec.residual=8", "codec.key_quantiser.group=4", "codec.value_quantiser.group=8")
PATIENCE_S = 10.0
THIRDS = ("placement.host=0.3", "placement.disk=0.4")


def placed(placement: str, *overrides: str, codec: str = "dense", name: str = "baseline") -> CacheStrategy:
    """Return a strategy whose entries lie elsewhere."""
    small = KIVI if codec.startswith("kivi") else ("codec.window=4",) if codec == "think" else ()
    parts = (f"strategy/codec={codec}", f"strategy/placement={placement}")
    return composed(name, *parts, *small, *overrides)


def resident(codec: str, name: str = "baseline", *overrides: str) -> CacheStrategy:
    """Return the same strategy with everything on the device."""
    return placed("device", *overrides, codec=codec, name=name)


def same_as_resident(
    model_name: str,
    placement: str,
    *overrides: str,
    codec: str = "dense",
    lengths: Sequence[int] = (PROMPT,),
    chunks: Sequence[int] = (),
    dtype: torch.dtype = torch.float64,
) -> None:
    """Logits are those of the cache on the device, bit by bit."""
    want = drive_rows(resident(codec), model_name, lengths, chunks=chunks, dtype=dtype)
    got = drive_rows(placed(placement, *overrides, codec=codec), model_name, lengths, chunks=chunks, dtype=dtype)
    moved = got.cache.traffic()
    assert moved.up + moved.read > 0, "nothing came from elsewhere"
    assert torch.equal(got.logits, want.logits)


def survivors_same_as_resident(model_name: str, placement: str, *overrides: str, codec: str = "dense") -> None:
    """The same of what SnapKV leaves."""
    limited = ("scorer.window=4", "scorer.kernel=3", "budget.unit=tokens", "budget.amount=12")
    want = drive_rows(resident(codec, "snapkv", *limited), model_name, (PROMPT,))
    got = drive_rows(placed(placement, *limited, *overrides, codec=codec, name="snapkv"), model_name, (PROMPT,))
    assert got.cache.bytes_on("host") + got.cache.bytes_on("disk") > 0
    assert torch.equal(got.logits, want.logits)


def made_again_equals_the_full_cache(
    model_name: str, amount: str, *overrides: str, lengths: Sequence[int] = (PROMPT,), chunks: Sequence[int] = ()
) -> None:
    """Logits of rows whose first keys and values are made again are those of the full cache, but for rounding."""
    want = drive_rows(resident("dense"), model_name, lengths, chunks=chunks)
    made = placed("recompute", f"placement.recompute={amount}", *overrides)
    got = drive_rows(made, model_name, lengths, chunks=chunks)
    assert got.cache.traffic().recomputed > 0
    for row, length in enumerate(lengths):
        assert_close(got.logits[row, PROMPT - length :], want.logits[row, PROMPT - length :])


def moves_what_the_formula_says(placement: str, *overrides: str, codec: str = "dense", rows: int = 1) -> None:
    """Every decode step brings all that lies elsewhere, and takes the new token there and nothing else."""
    made, run = placed(placement, *overrides, codec=codec), uniform(rows=rows)
    view = view_of(model("llama_gqa"))
    rooms = [rooms_of(plan, run, view.dtype) for plan in made.plans(view, run)]
    hidden = made.plans(view, run)[0].place.recomputed * rows * view.layers[0].key_projection.weight.shape[2]  # type: ignore[union-attr]
    before = Traffic()
    seen_before = [0]

    def watch(cache: KVCache, seen: int) -> None:
        now = cache.traffic()
        if seen > PROMPT:
            up, down = now.up - before.up, now.down - before.down
            host = _used(made, view, run, rooms, seen - 1, "host")
            assert up == host + len(view.layers) * hidden * view.dtype.itemsize, f"{up} bytes came at {seen}"
            assert down == _used(made, view, run, rooms, seen, "host") - host
            assert now.read - before.read == _used(made, view, run, rooms, seen - 1, "disk")
            assert now.near - before.near == _used(made, view, run, rooms, seen - 1, "device")
        before.__dict__.update(now.__dict__)
        seen_before[0] = seen

    text = ids(41, rows, PROMPT + NEW)
    drive(model("llama_gqa"), made, text, run, watch=watch)
    assert seen_before[0] == PROMPT + NEW


def _used(
    made: CacheStrategy, view: ModelView, run: RunShape, rooms: Sequence[Sequence[Room]], seen: int, tier: str
) -> int:
    """Return the bytes of rows in use that lie in a tier, of codecs whose tokens are packed alone."""
    place = made.plans(view, run)[0].place
    assert place is not None
    total = 0
    for room in (each for layer in rooms for each in layer):
        where = place.shares.cut(room, place.recomputed)[tier]  # type: ignore[index]
        if place.shares.axis == "sequence":
            total += room.bytes // room.entries * max(0, min(seen, where.stop) - where.start)
        else:
            total += room.bytes // room.entries // room.batch * seen * len(where)
    return total


def bytes_lie_where_they_were_said_to(placement: str, *overrides: str, codec: str = "dense", rows: int = 2) -> None:
    """Host, disk and device hold what the closed forms say, and together what a resident cache holds, and buffers."""
    made, run = placed(placement, *overrides, codec=codec), uniform(rows=rows)
    view = view_of(model("llama_gqa"))
    said = made.bytes_elsewhere(view, run)
    assert said.host + said.disk > 0
    cache = drive(model("llama_gqa"), made, ids(42, rows, PROMPT + NEW), run).cache
    assert (cache.bytes_on("host"), cache.bytes_on("disk")) == (said.host, said.disk)
    assert cache.allocated_bytes() == made.allocated_bytes(view, run)
    assert cache.mover is not None
    buffers = sum(len(buffer.data) for buffer in cache.mover._buffers) + len(cache.mover._nothing)
    here = resident(codec).allocated_bytes(view, run)
    assert cache.allocated_bytes() - buffers + said.host + said.disk == here


def nothing_packed_is_nothing_elsewhere(placement: str, *overrides: str) -> None:
    """Where all entries are among the latest, which stay, nothing lies elsewhere, and bytes are still those said."""
    latest = ("codec.residual=64", *overrides)
    want = drive_rows(resident("kivi4", "baseline", "codec.residual=64"), "llama_gqa", (PROMPT, PROMPT))
    made = placed(placement, *latest, codec="kivi4")
    got = drive_rows(made, "llama_gqa", (PROMPT, PROMPT))
    assert torch.equal(got.logits, want.logits)
    assert got.cache.bytes_on("host") == got.cache.bytes_on("disk") == 0
    assert got.cache.allocated_bytes() == made.allocated_bytes(view_of(model("llama_gqa")), uniform(rows=2))


def shares_are_exact() -> None:
    """Parts touch, add up, and are as large as asked, the furthest first."""
    room = Room(batch=4, entries=10, bytes=400)
    cut = Shares(axis="sequence", host=0.3, disk=0.4).cut(room)
    assert cut == {"disk": range(4), "host": range(4, 7), "device": range(7, 10)}
    assert Shares(axis="sequence", host=0.5, disk=0.0).cut(room, 4)["host"] == range(4, 7)
    assert Shares(axis="batch", host=0.5, disk=0.25).cut(room) == {
        "disk": range(1),
        "host": range(1, 3),
        "device": range(3, 4),
    }
    assert Shares(axis="batch", host=0.5, disk=0.25).bytes(room, "host") == 200


def a_restored_cache_decodes_the_same(placement: str, *overrides: str, codec: str = "dense") -> None:
    """What follows a restored snapshot is what follows the prompt, bit by bit, whatever was decoded between."""
    network, run = model("llama_gqa"), uniform()
    made = placed(placement, *overrides, "placement.prefetch=0", codec=codec)  # layers share the one buffer
    prompt, one, other = ids(43, 1, PROMPT), ids(44, 1, NEW), ids(45, 1, NEW)
    with attention(network, "kvbench"):
        cache = drive(network, made, prompt, run).cache
        snapshot = cache.snapshot()
        decoded = _decoded(network, cache, one)
        cache.restore(snapshot)
        again = _decoded(network, cache, other)
        alone = _decoded(network, drive(network, made, prompt, run).cache, other)
    assert torch.equal(again, alone)
    assert not torch.equal(decoded, alone)


def _decoded(network: PreTrainedModel, cache: KVCache, text: Tensor) -> Tensor:
    """Return the logits after the last of some tokens [1, T], one at a time."""
    for at in range(text.shape[1]):
        cache.begin(DECODE)
        position = cache.position_ids(1)
        logits: Tensor = network(text[:, at : at + 1], past_key_values=cache, position_ids=position).logits
    return logits


def a_full_disk_says_where(folder: Path) -> None:
    """A folder without room, or that is none, is an error that names the keys."""
    like = torch.zeros(1, 2, 1, WIDTH)
    for missing in (folder / "none", Path("/dev/null")):
        with pytest.raises(ValueError, match=r"strategy\.placement\.folder"):
            OnDisk(like, like.shape, str(missing), is_cold=False)
    room = os.statvfs(folder)
    too_long = torch.Size((1, 2, (room.f_bavail * room.f_frsize) // (2 * WIDTH * 4) + 2**40, WIDTH))
    with pytest.raises(ValueError, match=r"cannot be kept in .*strategy\.placement\.disk"):
        OnDisk(like, too_long, str(folder), is_cold=False)
    assert list(folder.iterdir()) == []


def files_have_no_name_and_are_closed(folder: Path) -> None:
    """Nothing is seen in the folder while a cache lives, and no file is open once it is gone."""
    cache = drive_rows(placed("disk", f"placement.folder={folder}"), "llama_gqa", (PROMPT,)).cache
    assert cache.bytes_on("disk") > 0
    assert list(folder.iterdir()) == []
    assert open_files(folder)
    del cache
    gc.collect()
    stop = time.monotonic() + PATIENCE_S
    while open_files(folder) and time.monotonic() < stop:  # threads that fetch ahead let go when they are done
        time.sleep(0.01)
    assert not open_files(folder)


def open_files(folder: Path) -> list[Path]:
    """Return the files of a folder that this process has open, with a name or without."""
    targets = [Path(os.path.realpath(path)) for path in Path("/proc/self/fd").iterdir()]
    return [target for target in targets if folder in target.parents]


def waits_are_as_long_as_fetches_that_nobody_made_ahead() -> None:
    """A fetch takes 2 s: all of them are waited for when nobody is ahead, and none when somebody has been quick."""
    with pytest.MonkeyPatch.context() as patched:
        clock = _Clock()
        for module in (home, mover):
            patched.setattr(module, "perf_counter", lambda: clock.now_s)
        fetch = home.Home._fetch

        def slow(self: home.Home, buffer: Tensor) -> None:
            clock.now_s += 2
            fetch(self, buffer)

        patched.setattr(home.Home, "_fetch", slow)
        for ahead, stall_ms, overlap in ((0, 2e3, 0.0), (1, 0.0, 1.0)):
            found, layers = _waited(f"placement.prefetch={ahead}")
            assert found["stall_ms_per_step"] == pytest.approx(stall_ms * layers)
            assert found["overlap_share"] == overlap
            assert found["wait_share"] == 1 - overlap


@dataclass
class _Clock:
    now_s: float = 0.0


class _AtOnce:
    """A thread that has done what it is told before anybody looks."""

    def submit(self, work: Callable[[], object]) -> Future[object]:
        done: Future[object] = Future()
        done.set_result(work())
        return done


def _waited(*overrides: str) -> tuple[dict[str, float], int]:
    """Return the columns of two decode steps after the first, and how many layers there are."""
    network, run = model("llama_gqa"), uniform(rows=1)
    made, text = placed("host", *overrides), ids(47, 1, PROMPT + 3)
    cache = made.build(view_of(network), run)
    assert cache.mover is not None
    if cache.mover._thread is not None:
        cache.mover._thread = _AtOnce()  # type: ignore[assignment]
    with attention(network, "kvbench"):
        network(text[:, :PROMPT], past_key_values=cache, position_ids=cache.position_ids(PROMPT))
        _decoded(network, cache, text[:, PROMPT : PROMPT + 1])
        before = cache.traffic()
        _decoded(network, cache, text[:, PROMPT + 1 :])
    return waited(cache, before, 2), len(cache.layers)


def locked_bytes_are_those_the_system_says_are_locked() -> None:
    """None of the host's bytes here; all of them, and none of the device's, where the system says so."""
    made, run = placed("split", *THIRDS), uniform(rows=1)
    cache = drive(model("llama_gqa"), made, ids(48, 1, PROMPT + 1), run).cache
    assert cache.pinned_bytes() == 0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Tensor, "is_pinned", lambda self: True)
        patched.setattr(OnDevice, "tensors", lambda self: (self.data,) if isinstance(self, OnHost) else ())
        assert cache.pinned_bytes() == cache.bytes_on("host") > 0


def a_link_is_modelled_beside_what_is_measured() -> None:
    """A step's bytes over the bandwidth, and the latency of each layer; nothing where the link is real."""
    settings = ("placement.link=modelled", "placement.link_gb_per_s=2", "placement.link_latency_us=5")
    before, after = Traffic(up=1_000, down=10, fetches=4), Traffic(up=2_001_000, down=2_000_010, fetches=24)
    made = placed("host", *settings).placement.link_ms(before, after, steps=10)
    assert made == pytest.approx((4_000_000 / 2e9 * 1e3 + 20 * 5e-3) / 10)
    assert placed("host").placement.link_ms(before, after, steps=10) is None


def auto_makes_again_what_takes_least(folder: Path) -> None:
    """As many tokens as take the least time by any length, none where activations are as large as keys and values."""
    record = folder / "hardware.json"
    row = {"name": "gemm_recompute", "value": 2e9, "device": "cuda", "device_name": "one", "shape": "1x64x128"}
    record.write_text(json.dumps([row]))
    link = ("placement.link=modelled", "placement.link_gb_per_s=1", "placement.link_latency_us=1")
    made = placed("recompute", "placement.recompute=auto", f"placement.hardware={record}", *link)
    run, view = RunShape(prompt_lengths=(640,), new_tokens=4), _wide_view(kv_heads=4)
    numbers = {length: _seconds(length, 640, hidden=64, width=128, bytes_per_s=1e9, flops=2e9) for length in range(641)}
    least = min(numbers[length] for length in range(0, 641, 16))
    place = made.plans(view, run)[0].place
    assert place is not None
    assert 0 < place.recomputed < 640
    assert numbers[place.recomputed] == pytest.approx(least)
    here = [row | {"device": "cpu"}, {"name": "read", "value": 2e9, "device": "cpu", "device_name": "one"}]
    record.write_text(json.dumps(here))  # where the host computes, what comes is read and written: half as fast
    alone = placed("recompute", "placement.recompute=auto", f"placement.hardware={record}").plans(view, run)[0].place
    assert alone is not None
    assert abs(alone.recomputed - place.recomputed) <= 16  # no latency is paid
    record.write_text(json.dumps([row | {"shape": "1x64x64"}]))
    few = made.plans(_wide_view(kv_heads=2), run)[0].place
    assert few is not None
    assert few.recomputed == 0
    with pytest.raises(ValueError, match="kvbench hardware"):
        placed("recompute", "placement.recompute=auto", f"placement.hardware={record}").plans(view, run)


def _seconds(length: int, tokens: int, *, hidden: int, width: int, bytes_per_s: float, flops: float) -> float:
    """Return how long a layer takes whose first tokens' activations come before the other tokens' keys and values."""
    again, others = length * 2 * hidden * width / flops, (tokens - length) * width * 4 / bytes_per_s
    moved = length * hidden * 4 / bytes_per_s + (1e-6 if length else 0)
    return moved + max(again, others + (1e-6 if length < tokens else 0))


def _wide_view(kv_heads: int) -> ModelView:
    """Return a model of one layer in float32 with so many KV heads of 16 channels and 64 hidden ones."""
    view = view_of(model("llama_gqa"))
    made = Projection(weight=torch.zeros(kv_heads, 16, 64), bias=None)
    shape = replace(view.layers[0], query_heads=4, kv_heads=kv_heads, key_dim=16, value_dim=16)
    layer = replace(shape, key_projection=made, value_projection=made)
    return replace(view, layers=(layer,), dtype=torch.float32)
