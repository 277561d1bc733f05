"""What a measuring process does: time in pairs and ask questions, or weigh."""

from __future__ import annotations

from collections.abc import Callable

import transformers.models.gpt2.modeling_gpt2
import transformers.models.llama.modeling_llama
import transformers.utils.logging

from kvbench.asking import all_cores, ask_attention, ask_likelihood, ask_recall, write_text
from kvbench.bench import Bench
from kvbench.columns import above, held, moved
from kvbench.engines.arm import DecodeArm
from kvbench.honesty import check_reported, held_before, live_storages
from kvbench.job import Job, Measured
from kvbench.measure.memory import MemoryMeter, return_large_blocks
from kvbench.timing import time_decode, time_prefill

Report = Callable[[str, float], None]

transformers.utils.logging.disable_progress_bar()  # the parent shows one for all


def time_and_quality(job: Job, report: Report) -> Measured:
    """Time all arms in pairs in this process, then ask for quality, untimed."""
    bench = Bench(job, report)
    refused = bench.refused()
    if refused is not None:
        return Measured(rows={"strategy": {**bench.facts, "status": "unsupported", "reason": refused}})
    for run in job.workload.runs():
        time_prefill(bench, run)
    time_decode(bench, job.workload.runs()[-1])
    with all_cores(bench):
        ask_likelihood(bench)
        ask_recall(bench)
        ask_attention(bench)
        write_text(bench)
    return bench.measured


def weigh(job: Job, name: str, report: Report) -> Measured:
    """Measure the memory of one arm, alone in this process and untimed."""
    return_large_blocks()
    bench = Bench(job, report)
    run = job.workload.runs()[-1]
    ids, arm = bench.ids(run, name), bench.alone(name)
    warm = DecodeArm(arm, run, ids)  # libraries' own workspace
    warm.step()
    del warm
    meter = MemoryMeter(bench.loaded.view.device, others=bench.loaded.view.devices[1:])
    meter.settle()
    idle = meter.held_bytes()
    before = live_storages()
    cache = arm.cache(run)
    meter.reset()
    arm.prefill(cache, ids[:, : run.prompt_tokens])
    most = meter.peak_bytes()
    if idle is not None:
        idle -= held_before(before, cache.tensors())
    prefill_peak = above(most, idle)
    meter.settle()
    steady = above(meter.held_bytes(), idle)
    check_reported(before, cache.tensors())
    meter.reset()
    samples, before_steps = [], cache.traffic()
    for at in range(run.prompt_tokens, ids.shape[1]):
        arm.step(cache, ids[:, at : at + 1])
        samples.append(above(meter.held_bytes(), idle))
        report("memory", (at + 1 - run.prompt_tokens) / (ids.shape[1] - run.prompt_tokens))
    decode_peak = above(meter.peak_bytes(), idle)
    peaks = [peak for peak in (prefill_peak, decode_peak) if peak is not None]
    known = [value for value in samples if value is not None]
    row = {
        "idle_bytes": idle,
        "steady_bytes": steady,
        "prefill_peak_bytes": prefill_peak,
        "decode_peak_bytes": decode_peak,
        "peak_bytes": max(peaks) if len(peaks) == 2 else None,
        "average_bytes": sum(known) // len(known) if known else None,
        "resident_bytes": meter.resident_bytes(),
        **held(arm, cache, run),
        **moved(arm, cache, before_steps, ids.shape[1] - run.prompt_tokens),
    }
    return Measured(rows={"strategy": row})
