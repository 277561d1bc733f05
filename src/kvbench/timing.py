"""Time of a run's arms, in pairs: reading the prompt, and decoding from its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from kvbench.bench import Bench
from kvbench.columns import (
    energy_columns,
    evidence_columns,
    interval_columns,
    latency_columns,
    latency_of,
    roofline_columns,
    waited,
    weights_read,
)
from kvbench.engines.arm import DecodeArm, PrefillArm
from kvbench.honesty import scores_watched, watched
from kvbench.measure import roofline, statistics
from kvbench.measure.blocks import run_block
from kvbench.measure.clock import clock_for
from kvbench.measure.environment import cache_share_bytes
from kvbench.measure.hardware import step_capabilities
from kvbench.measure.host import LocalHost
from kvbench.measure.paired import Arm, measure_paired
from kvbench.measure.rates import Capability
from kvbench.measure.roofline import Regime
from kvbench.measure.samples import PairedSamples
from kvbench.measure.settings import Settings
from kvbench.measure.statistics import Statistic
from kvbench.planning.expected import Work, link_seconds
from kvbench.predicting import machine_of_run, prediction_columns, work_of
from kvbench.sizing import count_launches
from kvbench.types import RunShape

FIRST_STEPS = 3  # of each arm, to see how slow it is


def time_prefill(bench: Bench, run: RunShape) -> None:
    """Time reading the prompt."""
    ids = {name: bench.ids(run, name) for name in bench.arms}
    arms = {name: PrefillArm(arm, run, ids[name][:, : run.prompt_tokens]) for name, arm in bench.arms.items()}
    whole = _settings(bench, run)
    settings = replace(whole, cell_seconds=whole.cell_seconds / 2, rounds_seconds=whole.rounds_seconds / 2)
    with _watched(bench, ids):
        paired = in_pairs(bench, arms, 1, settings, "prefill", "median")
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
    ids = {name: bench.ids(run, name) for name in bench.arms}
    settings, device = _settings(bench, run), bench.loaded.view.device
    with scores_watched(bench.job.strategy.scorer):
        arms = {name: DecodeArm(arm, run, ids[name]) for name, arm in bench.arms.items()}
    if run.new_tokens < 2:
        return
    before = {name: arm.cache.traffic() for name, arm in arms.items()}
    slowest_ms = max(_step_ms(arm, min(run.new_tokens, FIRST_STEPS), device) for arm in arms.values())
    steps = min(run.new_tokens, settings.steps_per_block(device.type, slowest_ms))
    strategy, statistic = bench.job.strategy, bench.job.strategy.statistic
    if statistic == "mean":  # whole periods, beside the first step, which does not count
        whole = strategy.period * max(1, (steps - 1) // strategy.period) + 1
        steps = min(run.new_tokens, whole)
    bench.report("bandwidth", 0.0)
    found = step_capabilities(device, settings.threads)
    bandwidth = next(one.value for one in found if one.name == "read")
    with _watched(bench, ids):
        paired = in_pairs(bench, arms, steps, settings, "decode", statistic)
    _record(bench, paired, phase="decode", position=run.prompt_tokens, tokens=run.batch_size)
    works = {}
    for name, arm in arms.items():
        row, timed = bench.measured.rows[name], waited(arm.cache, before[name], arm.decoded)
        arm.restore()
        launches = count_launches(arm.step)
        arm.restore()
        works[name] = work_of(bench.arms[name], arm.cache, run, before[name], arm.decoded, launches)
        row |= {**latency_columns(paired.samples, name, run), **timed, "setup_s": paired.warmup_s}
        row |= energy_columns(paired, name, run)
        row |= roofline_columns(int(works[name].read_bytes), bandwidth, row["decode_p50_ms"])
    _check_floors(bench, works, found)
    if paired.baseline is not None:
        _predict(bench, works, found)
        _compare(bench, paired, {name: int(work.read_bytes) for name, work in works.items()})
        if statistic == "mean" and steps <= strategy.period:
            bench.measured.rows["strategy"] |= {
                "verdict": "inconclusive",
                "reason": f"entries leave, or are packed, every {strategy.period} tokens and only {steps} were timed; "
                f"set workload.new_tokens={strategy.period + 1} or more",
            }


def _step_ms(arm: DecodeArm, steps: int, device: torch.device) -> float:
    """Return about how long a step of an arm lasts [ms]: the last of a few, as the first prepares."""
    arm.restore()
    return run_block(steps, arm.step, clock_for(device)).durations[-1].ms


@contextmanager
def _watched(bench: Bench, ids: Mapping[str, Tensor]) -> Iterator[None]:
    """Raise at the end if the strategy left hooks or changed token ids."""
    with ExitStack() as watches:
        watches.enter_context(watched(bench.loaded.model, ids["strategy"]))
        for name, mine in ids.items():
            watches.enter_context(watched(bench.arms[name].model, mine))
        yield


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
    row |= evidence_columns(evidence, verdict, reason)
    row["ceiling"] = roofline.ceiling(reads["baseline"], reads["strategy"])
    for name in bench.arms:
        bench.measured.rows[name]["regime"] = regime
    if regime == "memory_bound" and evidence.ratio is not None and bench.loaded.view.device.type == "cuda":
        ratio = evidence.ratio  # on a CPU attention may be bound by arithmetic, and what is saved there is no byte
        roofline.check_ceiling(ratio.value, ratio.low, ratio.high, row["ceiling"])


def _check_floors(bench: Bench, works: Mapping[str, Work], found: Sequence[Capability]) -> None:
    """Fail a run of which a step is faster than its bytes are read, or than what lies elsewhere crosses the link."""
    for name, work in works.items():
        row = bench.measured.rows[name]
        if _regime(bench, int(work.read_bytes), is_launch_bound=False) == "memory_bound":
            roofline.check_floor(row["decode_p50_ms"], row["floor_ms"], "reading its bytes")
        crossing_s = link_seconds(work, machine_of_run(bench.arms[name], found))
        roofline.check_floor(row["decode_p50_ms"], 1e3 * crossing_s, "what comes over the link")


def _predict(bench: Bench, works: Mapping[str, Work], found: Sequence[Capability]) -> None:
    full_ms = bench.measured.rows["baseline"]["decode_p50_ms"]
    for name, work in works.items():
        row, machine = bench.measured.rows[name], machine_of_run(bench.arms[name], found)
        row |= prediction_columns(work, works["baseline"], full_ms, machine, row["decode_p50_ms"])


def in_pairs(
    bench: Bench, arms: Mapping[str, Arm], steps: int, settings: Settings, stage: str, statistic: Statistic
) -> PairedSamples:
    """Time arms beside each other, as `measure_paired` does, and report how far that is."""
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
