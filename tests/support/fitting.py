"""What must hold where the host's share of a cache is fitted to the device's memory."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import torch

from kvbench.cache.kv_cache import KVCache
from kvbench.columns import held
from kvbench.engines.arm import Arm
from kvbench.engines.eager import Eager
from kvbench.models.view import view_of
from kvbench.strategies.base import CacheStrategy
from kvbench.types import RunShape
from tests.support.checks import NEW, PROMPT, uniform
from tests.support.drive import drive
from tests.support.models import ids, model
from tests.support.placement import placed

MODEL, ALONE = "llama_gqa", "placement.prefetch=0"  # two layers: with one more of them ahead nothing would be saved
GIB = 2**30


def fitted(memory_bytes: float, *overrides: str, codec: str = "dense") -> CacheStrategy:
    """Return a strategy that keeps on a device of such memory what there is room for."""
    memory = ("placement.host=fit", f"placement.memory_gib={memory_bytes / GIB!r}")
    return placed("split", *memory, ALONE, *overrides, codec=codec)


def _cache(made: CacheStrategy, run: RunShape) -> KVCache:
    return drive(model(MODEL), made, ids(70, run.batch_size, PROMPT + NEW), run).cache


def _beside(run: RunShape) -> int:
    """Return the bytes of weights and of a pass over the prompt, by hand."""
    network = model(MODEL)
    config: Any = network.config
    size = network.dtype.itemsize
    weights: dict[int, int] = {t.data_ptr(): t.nbytes for t in (*network.parameters(), *network.buffers())}
    width = 10 * config.hidden_size + 2 * config.intermediate_size
    passing: int = run.batch_size * (PROMPT * width * size + config.vocab_size * 4)
    return sum(weights.values()) + passing


@functools.cache
def _measured(share: float, run: RunShape, *overrides: str, codec: str) -> int:
    """Return the bytes on the device with a given share on the host, of a cache that was filled."""
    where = ("device",) if share == 0 else ("split", f"placement.host={share!r}", ALONE, *overrides)
    cache = _cache(placed(*where, codec=codec), run)
    undivided = 0
    if "placement.attend=host" in overrides and share > 0:
        undivided = sum(t.nbytes for t in cache.layers[0].tensors() if t.is_floating_point())
    return _beside(run) + cache.allocated_bytes() + undivided


def the_least_share_with_which_there_is_room(*overrides: str, codec: str = "dense", rows: int = 1) -> None:
    """What is filled has room in nine tenths, and has none with an entry, or a row, fewer on the host."""
    run, most = uniform(rows=rows), rows if "placement.axis=batch" in overrides else PROMPT + NEW
    asked, chosen = (0.75, 1.0), []
    for share in asked:
        memory = (_measured(share, run, *overrides, codec=codec) + 1) / 0.9
        made = fitted(memory, *overrides, codec=codec)
        found = made.placement.fitted_share(made.plans(view_of(model(MODEL)), run))
        assert found is not None
        assert 0 < found <= share, "what fits was not looked for"
        assert _measured(found, run, *overrides, codec=codec) <= 0.9 * memory
        fewer = round(found * most - 1) / most
        assert _measured(fewer, run, *overrides, codec=codec) > 0.9 * memory
        chosen.append(found)
    assert chosen[0] < chosen[1]


def what_fits_stays() -> None:
    """Nothing lies elsewhere where there is room for everything; with a byte less of memory something does."""
    run = uniform(rows=2)
    enough = _measured(0.0, run, codec="dense") / 0.9
    caches = [_cache(fitted(memory), run) for memory in (enough + 2, enough - 2)]
    assert [cache.bytes_on("host") > 0 for cache in caches] == [False, True]
    assert [cache.mover is None for cache in caches] == [True, False]


def what_is_said_to_be_needed_is_enough(*overrides: str) -> None:
    """A device that has no room is refused with a memory that has."""
    run, view = uniform(rows=2), view_of(model(MODEL))
    reason = fitted(_beside(run), *overrides).unsupported(view, run)
    assert reason is not None
    (said,) = re.findall(r"memory_gib to at least ([\d.]+)", reason)
    memory = float(said) * GIB
    made = fitted(memory, *overrides)
    assert made.unsupported(view, run) is None
    share = made.placement.fitted_share(made.plans(view, run))
    assert share is not None
    assert _measured(share, run, *overrides, codec="dense") <= 0.9 * memory
    assert fitted(0.98 * memory, *overrides).unsupported(view, run) is not None


def rows_say_what_was_chosen() -> None:
    """A row has the host's share of the entries where it was chosen, and nothing where it was given."""
    run, view = uniform(), view_of(model(MODEL))
    memory = (_measured(0.75, run, codec="dense") + 1) / 0.9
    found: list[object] = []
    for made in (fitted(memory), placed("split")):
        arm = Arm(name="strategy", model=model(MODEL), view=view, strategy=made, engine=Eager(prefill_chunk=0))
        cache = _cache(made, run)
        found += [held(arm, cache, run)["host_share"], _share_of(cache)]
    assert found[0] == found[1]
    assert found[2] is None


def _share_of(cache: KVCache) -> float:
    """Return which share of the entries' bytes lies with the host."""
    shapes: Sequence[torch.Size] = [storage.shape for home in cache.mover.homes for storage in home._storages]  # type: ignore[union-attr]
    return cache.bytes_on("host") / sum(8 * shape.numel() for shape in shapes)
