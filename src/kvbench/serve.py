"""Requests served by a run's arms: timed in pairs, weighed alone, and what became of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from kvbench.bench import Bench
from kvbench.cache.shared import SharedCache
from kvbench.columns import above, evidence_columns
from kvbench.engines.arm import Arm
from kvbench.engines.batcher import Batcher
from kvbench.engines.schedulers import FirstCome, Scheduler
from kvbench.engines.serving import Served, Serving
from kvbench.honesty import check_reported, live_storages
from kvbench.job import Job, Measured, Row
from kvbench.measure import statistics
from kvbench.measure.memory import MemoryMeter, return_large_blocks
from kvbench.measure.samples import Sample, again
from kvbench.timing import in_pairs
from kvbench.types import Request, RunShape
from kvbench.workloads import pieces
from kvbench.workloads.requests import Requests

Report = Callable[[str, float], None]

ALONE = FirstCome(reuse=False)  # how the baseline serves the same requests


class RequestsArm:
    """Serves the same requests again and again, from empty pages.

    Args:
        arm: which.
        engine: how much is read at once.
        scheduler: who is next.
        requests: what is asked.
        run: how long they are.
    """

    def __init__(
        self, arm: Arm, engine: Batcher, scheduler: Scheduler, requests: Sequence[Request], run: RunShape
    ) -> None:
        self.arm, self.engine, self.scheduler, self.requests = arm, engine, scheduler, requests
        plans = arm.strategy.plans(arm.view, RunShape(prompt_lengths=(1,), new_tokens=1))
        self.cache = SharedCache(plans, arm.view, engine.pages(run, arm.strategy.page_tokens))
        self.done: list[Serving] = []

    def restore(self) -> None:
        """Begin again with free pages."""
        self.serving = Serving(self.arm.model, self.cache, self.engine, self.scheduler, self.requests)

    def step(self) -> None:
        """Serve all requests."""
        self.serving.run()
        self.done.append(self.serving)


def serve(job: Job, report: Report) -> Measured:
    """Serve a workload's requests with both arms in turn."""
    bench = Bench(job, report)
    refused = bench.refused()
    if refused is not None:
        return Measured(rows={"strategy": {**bench.facts, "status": "unsupported", "reason": refused}})
    arms = {name: _arm(bench, name) for name in bench.arms}
    paired = in_pairs(bench, arms, 1, job.settings, "serve", "median")
    served: dict[str, list[Sample]] = {
        name: [sample for sample in paired.samples if sample.arm in (name, again(name))] for name in arms
    }
    for name, arm in arms.items():
        row, servings = bench.measured.rows[name], arm.done[-len(served[name]) :]
        row |= _columns(job, servings)
        row |= {"sharing": pieces.sharing(arm.requests), "setup_s": paired.warmup_s}
        for sample, serving in zip(served[name], servings, strict=True):
            tokens = sum(each.tokens for each in serving.passes)
            step = {"arm": sample.arm, "round": sample.round, "block": sample.block, "index_in_block": 0}
            timed = {"wall_ns": sample.wall_ns, "event_ms": sample.event_ms, "is_clean": sample.is_clean}
            bench.measured.steps.append({**step, **timed, "phase": "serve", "position": 0, "tokens": tokens})
            bench.measured.requests += [{**_record(each), **step} for each in serving.served.values()]
    if paired.baseline is not None:
        _compare(bench, statistics.weigh(paired, "strategy", "median"), arms)
    return bench.measured


def weigh_requests(job: Job, name: str, report: Report) -> Measured:
    """Measure the memory of one arm, alone in this process and untimed."""
    return_large_blocks()
    bench = Bench(job, report)
    bench.alone(name)
    warm = _arm(bench, name, most=1)  # libraries' own workspace, and weights that lie in a file until they are read
    warm.restore()
    warm.serving.run(lambda share: None)
    del warm
    meter = MemoryMeter(bench.loaded.view.device, others=bench.loaded.view.devices[1:])
    meter.settle()
    idle, before = meter.held_bytes(), live_storages()
    arm = _arm(bench, name)
    meter.reset()
    arm.restore()
    arm.serving.run(lambda share: report("memory", share))
    peak = above(meter.peak_bytes(), idle)
    del arm.serving
    meter.settle()
    check_reported(before, arm.cache.tensors())
    row = {
        "idle_bytes": idle,
        "steady_bytes": above(meter.held_bytes(), idle),
        "peak_bytes": peak,
        "resident_bytes": meter.resident_bytes(),
        "kv_allocated_bytes": arm.cache.allocated_bytes(),
        "kv_predicted_bytes": arm.arm.strategy.pool_bytes(arm.arm.view, arm.cache.num_pages),
        "host_bytes": 0,
        "disk_bytes": 0,
    }
    return Measured(rows={"strategy": row})


def _arm(bench: Bench, name: str, most: int | None = None) -> RequestsArm:
    """Return what serves a workload's requests, or the first of them."""
    job = bench.job
    assert isinstance(job.engine, Batcher)
    assert isinstance(job.scheduler, Scheduler)
    requests = job.workload.requests(bench.sources[name])[:most]
    scheduler, run = ALONE if name == "baseline" else job.scheduler, job.workload.runs()[-1]
    return RequestsArm(bench.arms[name], job.engine, scheduler, requests, run)


def _compare(bench: Bench, evidence: statistics.Evidence, arms: Mapping[str, RequestsArm]) -> None:
    row, limits = bench.measured.rows["strategy"], bench.job.settings.limits(bench.loaded.view.device.type)
    verdict, reason = statistics.judge(evidence, "memory_bound", limits)  # what is saved is no read, wherever it lies
    row |= evidence_columns(evidence, verdict, reason)
    mine, others = (arms[name].done[-1].served for name in ("strategy", "baseline"))
    row["same_share"] = float(np.mean([mine[number].tokens == others[number].tokens for number in mine]))


def _columns(job: Job, servings: Sequence[Serving]) -> Row:
    """Return what holds of several servings of the same requests, those that were disturbed included."""
    workload: Requests = job.workload
    last = servings[-1]
    served = [each for serving in servings for each in serving.served.values()]
    first = np.array([1e3 * (each.token_s[0] - each.arrival_s) for each in served])
    whole = np.array([1e3 * (each.token_s[-1] - each.arrival_s) for each in served])
    later = [1e3 * (each.token_s[-1] - each.token_s[0]) / (len(each.tokens) - 1) for each in served if each.tokens[1:]]
    gaps = [1e3 * (after - before) for each in served for before, after in pairwise(each.token_s)]
    waits = [1e3 * (each.admitted_s - each.arrival_s) for each in served if each.admitted_s is not None]
    kept = [_is_in_time(each, workload) for each in served]
    spans = [max(each.token_s[-1] for each in serving.served.values()) for serving in servings]
    passes = [each for serving in servings for each in serving.passes]
    pace = whole / np.array([len(each.tokens) for each in served])
    return {
        "requests": len(last.served),
        "serve_s": float(np.median(spans)),
        "passes": len(last.passes),
        "ttft_ms": float(np.median(first)),
        "ttft_p99_ms": float(np.percentile(first, 99)),
        "tpot_ms": float(np.mean(later)) if later else None,
        **{f"decode_p{at}_ms": float(np.percentile(gaps, at)) for at in (50, 90, 95, 99) if gaps},
        "e2e_p50_ms": float(np.median(whole)),
        "e2e_p99_ms": float(np.percentile(whole, 99)),
        "tokens_per_s": sum(len(each.tokens) for each in served) / sum(spans),
        "goodput_per_s": sum(kept) / sum(spans),
        "fairness": float(pace.sum() ** 2 / (len(pace) * (pace**2).sum())),
        "max_wait_ms": max(waits),
        "prefill_tokens_computed": sum(each.computed_tokens for each in last.served.values()),
        "prefill_tokens_reused": sum(each.reused_tokens for each in last.served.values()),
        "preemptions": sum(each.preemptions for each in last.served.values()),
        "kv_used_bytes": max(each.pages for each in passes) * last.cache.page_bytes,
        "page_utilisation": sum(p.entries for p in passes) / (sum(p.pages for p in passes) * last.size),
    }


def _is_in_time(served: Served, workload: Requests) -> bool:
    first, last = served.token_s[0] - served.arrival_s, served.token_s[-1] - served.token_s[0]
    later = max(1, len(served.tokens) - 1)
    return 1e3 * first <= workload.ttft_target_ms and 1e3 * last / later <= workload.tpot_target_ms


def _record(served: Served) -> Row:
    return {
        "number": served.request.number,
        "group": served.request.group,
        "arrival_s": served.arrival_s,
        "admitted_s": served.admitted_s,
        "first_token_s": served.token_s[0],
        "last_token_s": served.token_s[-1],
        "prompt_tokens": served.prompt_tokens,
        "new_tokens": len(served.tokens),
        "computed_tokens": served.computed_tokens,
        "reused_tokens": served.reused_tokens,
        "preemptions": served.preemptions,
    }
