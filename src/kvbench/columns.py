"""From measured objects to columns by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from kvbench.cache.codecs.dense import Dense
from kvbench.cache.kv_cache import KVCache
from kvbench.cache.placement.tiers import Traffic
from kvbench.engines.arm import Arm
from kvbench.job import Job, Row
from kvbench.measure import roofline, statistics
from kvbench.measure.environment import environment
from kvbench.measure.samples import PairedSamples, Sample
from kvbench.models.load import Loaded
from kvbench.models.view import weights_bytes
from kvbench.types import ModelView, RunShape

LEAST_ENERGY_S = 5.0  # counters are read between blocks, and move some tens of milliseconds apart


def facts(job: Job, loaded: Loaded, attention: str) -> Row:
    """Return what is known of every arm once the model is loaded."""
    run = job.workload.runs()[-1]
    return {
        "status": "ok",
        "reason": "",
        "weights": loaded.weights,
        "model_revision": loaded.revision,
        "weights_bytes": weights_bytes(loaded.model),
        "layer_devices": None if job.spec.device_map == "none" else layer_devices(loaded.view),
        "dtype": str(loaded.view.dtype).removeprefix("torch."),
        "attention": attention,
        "batch_size": run.batch_size,
        "prompt_tokens": run.prompt_tokens,
        "new_tokens": run.new_tokens,
        **environment(str(loaded.view.device)),
    }


def layer_devices(view: ModelView) -> str:
    """Return which layers are on which device, as in "cuda:0: 0-15, cuda:1: 16-31"."""
    found: dict[torch.device, list[int]] = {}
    for layer in range(len(view.layers)):
        found.setdefault(view.device_of(layer), []).append(layer)
    return ", ".join(f"{device}: {_ranges(layers)}" for device, layers in found.items())


def _ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as runs, as in "0-3 7 9-10"."""
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return " ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def held(arm: Arm, cache: KVCache, run: RunShape) -> Row:
    """Return what a cache holds, by count and by formula."""
    entries = torch.cat([entries.flatten().float().cpu() for entries in cache.entries_held()])
    plans = arm.strategy.plans(arm.view, run)
    asked = [budget for plan in plans if plan.budget is not None for budget in plan.budget]
    disk_bytes, numbers = cache.bytes_on("disk"), cache.numbers_held()
    own = next(filter(None, (plan.kernel_on(arm.view.device, arm.view.dtype, run) for plan in plans)), None)
    return {
        "kv_allocated_bytes": cache.allocated_bytes(),
        "kv_used_bytes": cache.used_bytes(),
        "kv_predicted_bytes": arm.strategy.allocated_bytes(arm.view, run),
        "bits_per_element": 8 * cache.used_bytes() / numbers if numbers > 0 else None,
        **cache.shares(),
        **_compressed(cache),
        "kernel": arm.strategy.kernel_on(arm.view.device, arm.view.dtype) or own,
        "page_utilisation": cache.page_utilisation(),
        "host_bytes": cache.bytes_on("host"),
        "host_share": arm.strategy.placement.fitted_share(plans),
        "pinned_bytes": cache.pinned_bytes(),
        "disk_bytes": disk_bytes,
        "disk_cold": any(plan.place.is_cold for plan in plans if plan.place) if disk_bytes else None,
        "entries_asked": sum(asked) / len(asked) if asked else None,
        "entries_held_mean": entries.mean().item(),
        "entries_held_min": int(entries.min()),
        "entries_held_max": int(entries.max()),
    }


def _compressed(cache: KVCache) -> Row:
    """Return how many times fewer bytes of a prompt there are than in the full cache; nothing where all are kept."""
    if not cache.contexts:
        return {}
    full = _full_prompt_bytes(cache)
    return {"stored_ratio": full / cache.encoding_bytes, "runtime_ratio": full / cache.context_bytes()}


def _full_prompt_bytes(cache: KVCache) -> int:
    """Return the bytes that the prompt would take in the full cache of the same layers."""
    like = cache.layers[0].plan
    layers = [replace(shape, part="all") for shape in cache.view.layers if shape.part == "new"]
    run = replace(cache.run, new_tokens=0)
    plans = (replace(like, shape=shape, codec=Dense()) for shape in layers)
    return sum(plan.allocated_bytes(run, cache.view.dtype) for plan in plans)


def moved(arm: Arm, cache: KVCache, before: Traffic, steps: int) -> Row:
    """Return what decode steps moved between the device and elsewhere, per step; nothing where all lies on the device.

    Args:
        arm: whose cache it is.
        cache: after the steps.
        before: what had moved when they began.
        steps: how many there were.
    """
    if not cache.is_elsewhere or steps == 0:
        return {}
    after = cache.traffic()
    return {
        "up_bytes_per_step": (after.up - before.up) / steps,
        "down_bytes_per_step": (after.down - before.down) / steps,
        "disk_read_bytes_per_step": (after.read - before.read) / steps,
        "disk_written_bytes_per_step": (after.written - before.written) / steps,
        "recomputed_tokens_per_step": (after.recomputed - before.recomputed) / steps,
        "modelled_link_ms": arm.strategy.placement.link_ms(before, after, steps),
        "hit_share": _share(after.hits - before.hits, after.asked - before.asked),
    }


def waited(cache: KVCache, before: Traffic, steps: int) -> Row:
    """Return how timed decode steps waited for what lies elsewhere; nothing where all lies on the device.

    Args:
        cache: after the steps.
        before: what had moved when they began.
        steps: how many there were.
    """
    after = cache.traffic()
    fetches, fetching_s = after.fetches - before.fetches, after.fetching_s - before.fetching_s
    if cache.mover is None or fetches == 0:
        return {}
    stalled_s = after.stalled_s - before.stalled_s
    is_seen = cache.view.device.type == "cpu" and fetching_s > 0  # elsewhere copies go on without the host
    return {
        "wait_share": (after.waits - before.waits) / fetches,
        "stall_ms_per_step": 1e3 * stalled_s / steps,
        "overlap_share": max(0.0, 1 - stalled_s / fetching_s) if is_seen else None,
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole > 0 else None


def weights_read(model: nn.Module) -> int:
    """Return the bytes of weights one decode step reads: all but an input embedding that is not tied."""
    skipped = _looked_up(model)
    return weights_bytes(model) - (0 if skipped is None else skipped.numel() * skipped.element_size())


def numbers_read(model: nn.Module) -> int:
    """Return how many weights one decode step multiplies a token with."""
    skipped = _looked_up(model)
    total = sum(t.numel() for t in (*model.parameters(), *model.buffers()))
    return total - (0 if skipped is None else skipped.numel())


def _looked_up(model: nn.Module) -> Tensor | None:
    """Return an input embedding of which a step reads a row; None where it is tied, and all of it is read."""
    embedding: Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
    output = model.get_output_embeddings()  # type: ignore[operator]
    if output is None:
        return embedding
    is_tied = output.weight is embedding or output.weight.data_ptr() == embedding.data_ptr() != 0  # 0: on no device
    return None if is_tied else embedding


def latency_of(samples: Sequence[Sample], name: str) -> statistics.Latency:
    """Return an arm's percentiles over its clean blocks; over all of them, where none was clean."""
    found = statistics.latency(samples, name) or statistics.latency(samples, name, clean_only=False)
    assert found is not None
    return found


def latency_columns(samples: Sequence[Sample], name: str, run: RunShape) -> Row:
    """Return the percentiles of an arm's decode steps."""
    found = latency_of(samples, name)
    return {
        "tpot_ms": found.mean_ms,
        "decode_p50_ms": found.p50_ms,
        "decode_p90_ms": found.p90_ms,
        "decode_p95_ms": found.p95_ms,
        "decode_p99_ms": found.p99_ms,
        "decode_max_ms": found.max_ms,
        "decode_mean_ms": found.mean_ms,
        "tokens_per_s": 1e3 * run.batch_size / found.mean_ms,
    }


def energy_columns(paired: PairedSamples, name: str, run: RunShape) -> Row:
    """Return the energy of an arm's tokens; nothing where it is not counted, or not for long enough."""
    found = paired.energy.get(name)
    if found is None or found.seconds < LEAST_ENERGY_S:
        return {}
    return {"energy_j_per_token": found.joules / (found.steps * run.batch_size)}


def roofline_columns(read_bytes: int, bandwidth: float, p50_ms: float) -> Row:
    """Return the least time of a step and how near it the measured one is."""
    floor = roofline.floor_ms(read_bytes, bandwidth)
    return {
        "bytes_read_per_step": read_bytes,
        "bandwidth_bytes_per_s": bandwidth,
        "floor_ms": floor,
        "efficiency": floor / p50_ms,
    }


def interval_columns(name: str, found: statistics.Interval) -> Row:
    """Return a value and its interval under three names."""
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def evidence_columns(found: statistics.Evidence, verdict: statistics.Verdict, reason: str) -> Row:
    """Return what a comparison shows of the strategy's arm, and what may be claimed of it."""
    row: Row = {"verdict": verdict, "reason": reason, "rounds": found.rounds, "dirty_share": found.dirty_share}
    if found.aa is not None:
        row |= {"aa_ratio": found.aa.value, "aa_low": found.aa.low, "aa_high": found.aa.high}
    return row if found.ratio is None else row | interval_columns("ratio", found.ratio)


def above(value: int | None, idle: int | None) -> int | None:
    """Return the bytes above idle, or None where either is unknown."""
    return None if value is None or idle is None else max(0, value - idle)
