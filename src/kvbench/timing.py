"""Time of a run's arms, in pairs: reading the prompt, and decoding from its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kvbench.bench import Bench
from kvbench.columns import interval_columns, latency_columns, latency_of, roofline_columns, waited, weights_read
from kvbench.engines.arm import DecodeArm, PrefillArm
from kvbench.honesty import watched
from kvbench.measure import roofline, statistics
from kvbench.measure.clock import clock_for
from kvbench.measure.environment import cache_share_bytes
from kvbench.measure.hardware import stream_bandwidth
from kvbench.measure.host import LocalHost
from kvbench.measure.paired import Arm, measure_paired
from kvbench.measure.roofline import Regime
from kvbench.measure.samples import PairedSamples
from kvbench.measure.settings import Settings
from kvbench.measure.statistics import Statistic
from kvbench.types import RunShape


def time_prefill(bench: Bench, run: RunShape) -> None:
    """Time reading the prompt."""
    ids = bench.ids(run)
    arms = {name: PrefillArm(arm, run, ids[:, : run.prompt_tokens]) for name, arm in bench.arms.items()}
    settings = replace(_settings(bench, run), cell_seconds=bench.job.settings.cell_seconds / 2)
    with watched(bench.loaded.model, ids), watched(bench.arms["strategy"].model, ids):
        paired = _paired(bench, arms, 1, settings, "prefill", "median")
    _record(bench, paired, phase="prefill", position=0, tokens=run.prompt_tokens * run.batch_size)
    for name in bench.arms:
        bench.measured.rows[name]["ttft_ms"] = latency_of(paired.samples, name).p50_ms
    if paired.baseline is None:
        return
    evidence = statistics.weigh(paired, "strategy", "median")
    if evidence.ratio is not None:
        bench.measured.rows["strategy"] |= interval_columns("ttft_ratio", evidence.ratio)


def time_decode(bench: Bench, run: RunShape) -> None:
    """Time decoding from the end of the prompt, beside the bytes it must read."""
    assert run.new_tokens is not None
    ids, settings, device = bench.ids(run), _settings(bench, run), bench.loaded.view.device
    arms = {name: DecodeArm(arm, run, ids) for name, arm in bench.arms.items()}
    steps = min(run.new_tokens, settings.steps_per_block(device.type, step_ms=1.0))
    if steps < 2:
        return
    strategy, statistic = bench.job.strategy, bench.job.strategy.statistic
    if statistic == "mean":  # whole periods, beside the first step, which does not count
        whole = strategy.period * max(1, (steps - 1) // strategy.period) + 1
        steps = min(run.new_tokens, whole)
    bench.report("bandwidth", 0.0)
    bandwidth = stream_bandwidth(device, settings.threads)
    before = {name: arm.cache.traffic() for name, arm in arms.items()}
    with watched(bench.loaded.model, ids), watched(bench.arms["strategy"].model, ids):
        paired = _paired(bench, arms, steps, settings, "decode", statistic)
    _record(bench, paired, phase="decode", position=run.prompt_tokens, tokens=run.batch_size)
    reads = {}
    for name, arm in arms.items():
        arm.restore()
        reads[name] = weights_read(bench.arms[name].model) + arm.cache.read_bytes()
        row = bench.measured.rows[name]
        row |= latency_columns(paired.samples, name, run)
        row |= waited(arm.cache, before[name])
        row |= roofline_columns(reads[name], bandwidth, row["decode_p50_ms"])
        row["setup_s"] = paired.warmup_s
    if paired.baseline is not None:
        _compare(bench, paired, reads)
        if statistic == "mean" and steps <= strategy.period:
            bench.measured.rows["strategy"] |= {
                "verdict": "inconclusive",
                "reason": f"entries leave, or are packed, every {strategy.period} tokens and only {steps} were timed; "
                f"set workload.new_tokens={strategy.period + 1} or more",
            }


def _settings(bench: Bench, run: RunShape) -> Settings:
    """Return how carefully to time: no longer than it must, where no verdict can come of it."""
    settings = bench.job.settings
    if "baseline" not in bench.arms:
        return settings
    full = bench.arms["baseline"]
    held = full.strategy.used_bytes(full.view, run, run.prompt_tokens)
    if _regime(bench, weights_read(full.model) + held, is_launch_bound=False) == "overhead_bound":
        return replace(settings, max_rounds=settings.min_rounds)
    return settings


def _regime(bench: Bench, read_bytes: int, *, is_launch_bound: bool) -> Regime:
    return roofline.regime(
        read_bytes=read_bytes,
        cache_bytes=cache_share_bytes(),
        device_type=bench.loaded.view.device.type,
        is_launch_bound=is_launch_bound,
    )


def _compare(bench: Bench, paired: PairedSamples, reads: Mapping[str, int]) -> None:
    evidence = statistics.weigh(paired, "strategy", bench.job.strategy.statistic)
    regime = _regime(bench, reads["baseline"], is_launch_bound=statistics.is_launch_bound(paired, "baseline"))
    verdict, reason = statistics.judge(evidence, regime, bench.job.settings.limits(bench.loaded.view.device.type))
    row = bench.measured.rows["strategy"]
    row |= {
        "ceiling": roofline.ceiling(reads["baseline"], reads["strategy"]),
        "verdict": verdict,
        "reason": reason,
        "rounds": evidence.rounds,
        "dirty_share": evidence.dirty_share,
    }
    for name in bench.arms:
        bench.measured.rows[name]["regime"] = regime
    if evidence.aa is not None:
        row |= {"aa_ratio": evidence.aa.value, "aa_low": evidence.aa.low, "aa_high": evidence.aa.high}
    if evidence.ratio is not None:
        row |= interval_columns("ratio", evidence.ratio)
    if regime == "memory_bound":
        _check_physics(bench, evidence)


def _check_physics(bench: Bench, evidence: statistics.Evidence) -> None:
    """Fail a run that is faster than its bytes allow.

    On a CPU only the floor is certain: attention may be bound by arithmetic, and what a strategy saves there is no
    byte. On a GPU the ratio must not beat its ceiling either.
    """
    rows = bench.measured.rows
    for name in bench.arms:
        roofline.check_floor(rows[name]["decode_p50_ms"], rows[name]["floor_ms"])
    if evidence.ratio is not None and bench.loaded.view.device.type == "cuda":
        ratio = evidence.ratio
        roofline.check_ceiling(ratio.value, ratio.low, ratio.high, rows["strategy"]["ceiling"])


def _paired(
    bench: Bench, arms: Mapping[str, Arm], steps: int, settings: Settings, stage: str, statistic: Statistic
) -> PairedSamples:
    return measure_paired(
        arms,
        baseline="baseline" if "baseline" in arms else None,
        steps=steps,
        statistic=statistic,
        settings=settings,
        clock=clock_for(bench.loaded.view.device),
        host=LocalHost(),
        progress=lambda share: bench.report(stage, share),
    )


def _record(bench: Bench, paired: PairedSamples, *, phase: str, position: int, tokens: int) -> None:
    for record in paired.records():
        step = record["index_in_block"] if phase == "decode" else 0
        assert isinstance(step, int)
        bench.measured.steps.append({**record, "phase": phase, "position": position + step, "tokens": tokens})
