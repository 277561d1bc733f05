"""The GPU check's table: two model shapes, two contexts, eight strategies, eager, in pairs beside the full cache.

    python -m benchmarks.gpu_check --out runs/gpu_check

Random weights in bfloat16: time and bytes count. Needs torch, transformers, pandas, pyarrow, hydra-core and omegaconf
alone. Prints one table and writes it, with every timed step, in the form of any other run.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from kvbench.bench import Bench
from kvbench.columns import held, interval_columns, latency_columns, latency_of, roofline_columns, weights_read
from kvbench.configuration import build_group, check, compose, resolved
from kvbench.engines.arm import Arm, DecodeArm, PrefillArm
from kvbench.job import Row
from kvbench.measure import roofline, statistics
from kvbench.measure.clock import clock_for
from kvbench.measure.environment import cache_share_bytes
from kvbench.measure.hardware import stream_bandwidth
from kvbench.measure.host import LocalHost
from kvbench.measure.memory import MemoryMeter
from kvbench.measure.paired import measure_paired
from kvbench.measure.samples import PairedSamples
from kvbench.results.folder import open_draft
from kvbench.runner import Names, describe, identify, job_of
from kvbench.types import RunShape

STRATEGIES = ("baseline", "random_eviction", "sliding_window", "attention_sink", "h2o", "tova", "snapkv", "knorm")
SHOWN = [
    *("model", "prompt_tokens", "strategy", "status", "kv_allocated_bytes", "peak_bytes", "ttft_ms", "decode_p50_ms"),
    *("ratio", "ratio_low", "ratio_high", "ceiling", "efficiency", "verdict", "aa_ratio"),
]


class Cell:
    """One model at one context, all strategies on it."""

    def __init__(self, model: str, context: int, device: str, dtype: str, seconds: float) -> None:
        self.model, self.context, self.device = model, context, device
        self.overrides = [
            f"model={model}",
            "model.weights=random",
            f"model.device={device}",
            f"model.dtype={dtype}",
            f"workload.prompt_tokens={context}",
            "quality=none",
            "sweep=gpu_check",
            f"measure.cell_seconds={seconds}",
        ]
        self.config = compose(self.overrides)
        self.job = job_of(check(self.config))
        self.bench = Bench(self.job, lambda stage, share: None)
        settings = self.job.settings
        self.steps = settings.steps_per_block(self.bench.loaded.view.device.type, step_ms=5.0)
        self.run = RunShape(prompt_lengths=(context,), new_tokens=self.steps)
        self.ids = torch.tensor(
            self.bench.sources["baseline"].windows(1, context + self.steps), device=self.bench.loaded.view.device
        )

    def arm(self, strategy: str) -> Arm:
        """Return a strategy on the model."""
        node = resolved(compose([*self.overrides, f"strategy={strategy}"]))["strategy"]
        return replace(self.bench.arms["strategy"], name=strategy, strategy=build_group(node, "strategy"))

    def paired(self, arms: dict[str, Any], steps: int) -> PairedSamples:
        """Time arms in pairs."""
        return measure_paired(
            arms,
            baseline="baseline",
            steps=steps,
            statistic="median",
            settings=self.job.settings,
            clock=clock_for(self.bench.loaded.view.device),
            host=LocalHost(),
            progress=lambda share: None,
        )

    def memory(self, arm: Arm) -> Row:
        """Return what one arm takes at most, alone."""
        meter = MemoryMeter(self.bench.loaded.view.device)
        meter.settle()
        idle = meter.held_bytes() or 0
        meter.reset()
        cache = arm.cache(self.run)
        arm.prefill(cache, self.ids[:, : self.context])
        prefill = meter.peak_bytes()
        meter.settle()
        steady = (meter.held_bytes() or 0) - idle
        meter.reset()
        for at in range(self.context, self.ids.shape[1]):
            arm.step(cache, self.ids[:, at : at + 1])
        decode = meter.peak_bytes()
        peaks = (
            {}
            if prefill is None or decode is None
            else {
                "prefill_peak_bytes": prefill - idle,
                "decode_peak_bytes": decode - idle,
                "peak_bytes": max(prefill, decode) - idle,
            }
        )
        return {"idle_bytes": idle, "steady_bytes": steady, **peaks, **held(arm, cache, self.run)}

    def rows(self, strategies: tuple[str, ...]) -> Iterator[tuple[str, Row, list[Row]]]:
        """Yield per strategy its columns and its timed steps."""
        chosen = {name: self.arm(name) for name in strategies}
        weighed = {name: self.memory(arm) for name, arm in chosen.items()}
        prompt = self.ids[:, : self.context]
        prefill = self.paired({n: PrefillArm(a, self.run, prompt) for n, a in chosen.items()}, 1)
        arms = {name: DecodeArm(arm, self.run, self.ids) for name, arm in chosen.items()}
        decode = self.paired(arms, self.steps)
        bandwidth = stream_bandwidth(self.bench.loaded.view.device, self.job.settings.threads)
        reads = {name: weights_read(chosen[name].model) + weighed[name]["kv_used_bytes"] for name in arms}
        regime = roofline.regime(
            read_bytes=reads["baseline"],
            cache_bytes=cache_share_bytes(),
            device_type=self.bench.loaded.view.device.type,
            is_launch_bound=statistics.is_launch_bound(decode, "baseline"),
        )
        for name in strategies:
            row = {**self.bench.facts, **weighed[name], "regime": regime, "prompt_tokens": self.context}
            row |= {"new_tokens": self.steps, "ttft_ms": latency_of(prefill.samples, name).p50_ms}
            row |= latency_columns(decode.samples, name, self.run)
            row |= roofline_columns(reads[name], bandwidth, row["decode_p50_ms"])
            row["ceiling"] = roofline.ceiling(reads["baseline"], reads[name])
            if name != "baseline":
                row |= self._judged(decode, name, regime, row)
            steps = [
                {
                    **record,
                    "arm": "strategy",
                    "phase": "decode",
                    "position": self.context + int(str(record["index_in_block"])),
                    "tokens": 1,
                }
                for record in decode.records()
                if record["arm"] == name
            ]
            yield name, row, steps

    def _judged(self, decode: PairedSamples, name: str, regime: Any, row: Row) -> Row:
        evidence = statistics.weigh(decode, name, "median")
        limits = self.job.settings.limits(self.bench.loaded.view.device.type)
        verdict, reason = statistics.judge(evidence, regime, limits)
        found: Row = {
            "verdict": verdict,
            "reason": reason,
            "rounds": evidence.rounds,
            "dirty_share": evidence.dirty_share,
        }
        if evidence.ratio is not None:
            found |= interval_columns("ratio", evidence.ratio)
            if regime == "memory_bound" and self.device == "cuda":
                ratio = evidence.ratio
                roofline.check_ceiling(ratio.value, ratio.low, ratio.high, row["ceiling"])
        if evidence.aa is not None:
            found |= {"aa_ratio": evidence.aa.value, "aa_low": evidence.aa.low, "aa_high": evidence.aa.high}
        return found

    def write(self, out: Path, name: str, row: Row, steps: list[Row]) -> None:
        """Leave one strategy's row as a run of its own."""
        config = compose([*self.overrides, f"strategy={name}"])
        job = job_of(check(config))
        names = Names(
            strategy=name, model=self.model, engine="eager", workload="decode", overrides=" ".join(self.overrides)
        )
        identity = identify(config, job, names)
        run_id = identity.pop("run_id")
        with open_draft(out.parent, sweep=out.name, run_id=run_id, force=True) as draft:
            draft.finish([{**identity, **describe(job, "strategy"), **row}], steps)


def main() -> None:
    """Print the table and leave its runs in a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["llama-3.2-1b", "llama-3.1-8b"])
    parser.add_argument("--contexts", type=int, nargs="+", default=[2048, 16384])
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seconds", type=float, default=25.0)
    arguments = parser.parse_args()
    started = time.monotonic()
    table = []
    for model in arguments.models:
        for context in arguments.contexts:
            cell = Cell(model, context, arguments.device, arguments.dtype, arguments.seconds)
            for name, row, steps in cell.rows(tuple(arguments.strategies)):
                table.append({**row, "model": model, "strategy": name})
                cell.write(arguments.out, name, row, steps)
            print(f"{model} at {context}: {time.monotonic() - started:.0f} s", flush=True)
            del cell
            gc.collect()
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {table[0]['device_name']}")
    frame = pd.DataFrame(table).reindex(columns=SHOWN)
    print(frame.to_string(index=False, float_format=lambda value: f"{value:.3f}"))


if __name__ == "__main__":
    main()
