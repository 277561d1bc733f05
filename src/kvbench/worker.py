"""What a measuring process does: time in pairs and ask questions, weigh, or run a black box."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
import transformers.models.gpt2.modeling_gpt2
import transformers.models.llama.modeling_llama
import transformers.utils.logging

from kvbench.asking import all_cores, ask_likelihood, ask_recall, write_text
from kvbench.bench import Bench, source_of
from kvbench.columns import above, facts, held, latency_columns, moved
from kvbench.engines.arm import DecodeArm
from kvbench.engines.stock import Generated, Stock
from kvbench.honesty import check_reported, live_storages
from kvbench.job import Job, Measured, Row
from kvbench.measure.memory import MemoryMeter, return_large_blocks
from kvbench.measure.paired import garbage_kept
from kvbench.measure.samples import Sample
from kvbench.models.load import load
from kvbench.strategies.black_box import BlackBox
from kvbench.timing import time_decode, time_prefill
from kvbench.types import RunShape

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
    meter = MemoryMeter(bench.loaded.view.device)
    meter.settle()
    idle = meter.held_bytes()
    before = live_storages()
    cache = arm.cache(run)
    meter.reset()
    arm.prefill(cache, ids[:, : run.prompt_tokens])
    prefill_peak = above(meter.peak_bytes(), idle)
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


def stock_reference(job: Job, report: Report) -> Measured:
    """Let transformers generate on its own, again and again, and note every token's arrival."""
    black_box = _BlackBox(job, report)
    loaded, run = black_box.loaded, black_box.run
    row: Row = facts(job, loaded, black_box.engine.attention)
    reason = job.strategy.cannot_change(loaded.view) or job.strategy.unsupported(loaded.view, run)
    if reason is not None:
        return Measured(rows={"strategy": {**row, "status": "unsupported", "reason": reason}})
    first = black_box.generate()
    steps = _again_and_again(job, black_box.generate, run, report)
    texts = {} if loaded.tokenizer is None else {"strategy": loaded.tokenizer.batch_decode(first.tokens)}
    row["ttft_ms"] = median(step["wall_ns"] for step in steps if step["phase"] == "prefill") / 1e6
    decode = [_sample(step) for step in steps if step["phase"] == "decode"]
    if decode:
        row |= latency_columns(decode, "strategy", run)
    return Measured(rows={"strategy": row}, steps=steps, texts=texts)


def weigh_stock(job: Job, report: Report) -> Measured:
    """Measure the memory of transformers' generate, alone in this process and untimed."""
    return_large_blocks()
    black_box = _BlackBox(job, report)
    black_box.generate()  # libraries' own workspace
    meter = MemoryMeter(black_box.loaded.view.device)
    meter.settle()
    idle = meter.held_bytes()
    meter.reset()
    made = black_box.generate()
    row: Row = {
        "idle_bytes": idle,
        "peak_bytes": above(meter.peak_bytes(), idle),
        "resident_bytes": meter.resident_bytes(),
        "kv_allocated_bytes": made.cache_bytes,
        "kv_used_bytes": made.cache_bytes,
        "host_bytes": made.host_bytes,
        "disk_bytes": 0,
    }
    return Measured(rows={"strategy": row})


class _BlackBox:
    """A model that transformers runs from the prompt on."""

    def __init__(self, job: Job, report: Report) -> None:
        assert isinstance(job.engine, Stock)
        assert isinstance(job.strategy, BlackBox)
        torch.set_num_threads(job.settings.threads)
        torch.set_grad_enabled(False)
        report("load", 0.0)
        self.engine, self.strategy = job.engine, job.strategy
        self.loaded = load(job.spec, seed=job.seed, attention=self.engine.attention)
        self.run = job.workload.runs()[-1]
        ids = torch.tensor(job.workload.ids(source_of(job, self.loaded), self.run), device=self.loaded.view.device)
        self.prompt = ids[:, : self.run.prompt_tokens]

    def generate(self) -> Generated:
        """Generate once."""
        cache = self.strategy.own_cache(self.loaded.model.config, self.run)
        return self.engine.generate(self.loaded.model, self.prompt, self.run.new_tokens or 1, cache)


def _again_and_again(job: Job, generate: Callable[[], Generated], run: RunShape, report: Report) -> list[Row]:
    """Return a record per token of as many generations as fit the time, the first one for warm-up."""
    steps: list[Row] = []
    started = time.monotonic()
    for number in range(job.settings.max_rounds + 1):
        share = (time.monotonic() - started) / job.settings.cell_seconds
        if number > 1 and share >= 1:
            break
        report("generate", min(1.0, share))
        with garbage_kept():
            made = generate()
        for index, wall_ns in enumerate(made.step_ns if number > 0 else ()):
            is_prompt = index == 0
            steps.append(
                {
                    "arm": "strategy",
                    "round": number - 1,
                    "block": number - 1,
                    "index_in_block": max(0, index - 1),
                    "phase": "prefill" if is_prompt else "decode",
                    "position": 0 if is_prompt else run.prompt_tokens + index - 1,
                    "tokens": run.batch_size * (run.prompt_tokens if is_prompt else 1),
                    "wall_ns": wall_ns,
                    "is_clean": True,
                }
            )
    return steps


def _sample(step: Row) -> Sample:
    kept = {key: step[key] for key in ("arm", "round", "block", "index_in_block", "wall_ns", "is_clean")}
    return Sample(**kept, event_ms=None)
