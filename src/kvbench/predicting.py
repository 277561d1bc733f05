"""What the cost model says of steps that were measured: from what they moved and what the machine can do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.kv_cache import KVCache
from kvbench.cache.placement.tiers import Traffic
from kvbench.columns import numbers_read, weights_read
from kvbench.engines.arm import Arm
from kvbench.folders import hardware_record
from kvbench.job import Row
from kvbench.measure.environment import accelerator
from kvbench.measure.rates import Capability
from kvbench.planning.cost import predict
from kvbench.planning.expected import Work, fitted, step_cost
from kvbench.planning.machine import Machine, machine_of, read_records
from kvbench.types import RunShape


def work_of(arm: Arm, cache: KVCache, run: RunShape, before: Traffic, steps: int, launches: int) -> Work:
    """Return what a decode step did, by what it reads and what moved.

    Args:
        arm: whose cache it is.
        cache: after steps that were timed.
        run: shape of the batch.
        before: what had moved when they began.
        steps: how many there were.
        launches: operations that a step gives the device.
    """
    shape, moved = arm.view.layers[0], cache.traffic()
    place = next((layer.plan.place for layer in cache.layers if layer.plan.place is not None), None)
    elsewhere = sum(layer.home is not None or layer.plan.handing is not None for layer in cache.layers)
    attention = cache.numbers_held() * shape.query_heads // shape.kv_heads
    read_again = _read_again(arm, run) if arm.view.keeps_nothing else 0
    hidden, width = _projected(arm)
    again = run.batch_size * 2 * hidden * width
    return Work(
        read_bytes=weights_read(arm.model) + cache.read_bytes(),
        operations=2 * (run.batch_size * (numbers_read(arm.model) + read_again) + attention),
        launches=launches,
        up_bytes=(moved.up - before.up) / steps,
        down_bytes=(moved.down - before.down) / steps,
        disk_read_bytes=(moved.read - before.read) / steps,
        disk_written_bytes=(moved.written - before.written) / steps,
        near_bytes=(moved.near - before.near) / steps,
        recompute_flops=again * (moved.recomputed - before.recomputed) / steps,
        layers=elsewhere,
        overlaps=place is not None and place.prefetch > 0,
        is_cold=place is not None and place.is_cold,
    )


def _read_again(arm: Arm, run: RunShape) -> int:
    """Return the multiplications of a row by which a step is more, that passes the prompt through all layers again."""
    head: Tensor = arm.model.get_output_embeddings().weight  # type: ignore[operator]
    tokens, layers = run.prompt_tokens, arm.view.layers
    attention = sum(
        layer.query_heads * (layer.key_dim + layer.value_dim) * min(seen, layer.window or seen)
        for layer in layers
        for seen in range(1, tokens + 2)
    )
    return tokens * (numbers_read(arm.model) - head.numel()) + attention


def _projected(arm: Arm) -> tuple[int, int]:
    """Return inputs and outputs of what makes a layer's keys and values; 0 inputs where it is unknown."""
    shape = arm.view.layers[0]
    hidden = 0 if shape.key_projection is None else shape.key_projection.weight.shape[2]
    return hidden, shape.kv_heads * shape.stored_dim


def machine_of_run(arm: Arm, measured: Iterable[Capability]) -> Machine:
    """Return this machine: what was measured in this run, and what else `kvbench hardware` wrote of it.

    Args:
        arm: whose placement may name a record.
        measured: in this run, with its threads.
    """
    device, facts, found = arm.view.device, accelerator(str(arm.view.device)), list(measured)
    named = arm.strategy.placement.hardware
    kept = _record(Path(named) if named else hardware_record(device.type), device, facts["device_name"], found)
    rows = [{**one.record(), **facts} for one in found]
    hidden, width = _projected(arm)
    return machine_of([*kept, *rows], recompute_shape=f"{hidden}x{width}")


def _record(file: Path, device: torch.device, name: object, found: Iterable[Capability]) -> list[Mapping[str, Any]]:
    """Return the rows of a record that are of this device and, where it computes by threads, of as many."""
    try:
        rows = read_records(file)
    except ValueError:
        return []
    threads = {one.num_threads for one in found}
    here = [row for row in rows if row.get("device_name") == name]
    return [row for row in here if device.type != "cpu" or row.get("num_threads") in threads]


def prediction_columns(work: Work, full: Work, full_ms: float, machine: Machine, p50_ms: float) -> Row:
    """Return what the cost model predicts of a step, once a step of the full cache takes as long as it did.

    Args:
        work: of the step.
        full: of the full cache's.
        full_ms: that this one took.
        machine: as it was measured.
        p50_ms: that the step took.
    """
    try:
        found = predict(step_cost(work, is_host=machine.is_host), fitted(machine, full, full_ms / 1e3))
    except ValueError:  # what the step needs was never measured here
        return {"prediction": "no_rate"}
    return {
        "prediction": "fitted" if work is full else "modelled",
        "predicted_ms": found.seconds * 1e3,
        "measured_over_predicted": p50_ms / (found.seconds * 1e3),
        "binding_resource": found.binding,
    }
