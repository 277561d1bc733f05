"""The GPU check's table: two model shapes, two contexts, twelve strategies, eager and as a recorded graph, in pairs.

    python -m benchmarks.gpu_check --out runs/gpu_check

Random weights in bfloat16: time and bytes count. Needs torch, transformers, pandas, pyarrow, hydra-core and omegaconf
alone. Prints one table and writes it, with every timed step, in the form of any other run; what is there already is not
measured again, so that more models and contexts can follow in further calls. Where steps are recorded, the full cache
in the eager engine is timed beside them, and a second table says what recording gains.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from kvbench.bench import Bench
from kvbench.columns import (
    energy_columns,
    held,
    interval_columns,
    latency_columns,
    latency_of,
    roofline_columns,
    weights_read,
)
from kvbench.configuration import build_group, check, compose, resolved
from kvbench.engines.arm import Arm, DecodeArm, PrefillArm
from kvbench.engines.eager import Eager
from kvbench.job import Job, Row
from kvbench.measure import roofline, statistics
from kvbench.measure.clock import clock_for
from kvbench.measure.environment import cache_share_bytes
from kvbench.measure.hardware import stream_bandwidth
from kvbench.measure.host import LocalHost
from kvbench.measure.memory import MemoryMeter
from kvbench.measure.paired import measure_paired
from kvbench.measure.samples import PairedSamples
from kvbench.results.folder import finished, open_draft
from kvbench.results.load import load
from kvbench.runner import Names, describe, identify, job_of
from kvbench.types import RunShape

STRATEGIES = (
    *("baseline", "random_eviction", "sliding_window", "attention_sink", "h2o", "tova", "snapkv", "knorm", "pyramidkv"),
    *("quantization_8bit", "quantization_4bit", "fp8"),
)
ENGINES = ("eager", "cuda_graph")
BESIDE = "eager"  # the full cache in the eager engine, beside recorded steps
SHOWN = [
    *(
        "model",
        "prompt_tokens",
        "engine",
        "strategy",
        "status",
        "kv_allocated_bytes",
        "peak_bytes",
        "ttft_ms",
        "decode_p50_ms",
    ),
    "energy_j_per_token",
    *("ratio", "ratio_low", "ratio_high", "ceiling", "efficiency", "verdict", "aa_ratio"),
]


class Cell:
    """One model at one context in one engine, all strategies on it."""

    def __init__(self, model: str, context: int, engine: str, device: str, dtype: str, seconds: float) -> None:
        self.model, self.context, self.engine, self.device = model, context, engine, device
        self.overrides = [
            f"model={model}",
            f"engine={engine}",
            "model.weights=random",
            f"model.device={device}",
            f"model.dtype={dtype}",
            f"workload.prompt_tokens={context}",
            "quality=none",
            "sweep=gpu_check",
            f"measure.cell_seconds={seconds}",
        ]
        self.beside: Row = {}  # what recording gains

    def identity(self, strategy: str) -> tuple[Job, Row]:
        """Return a strategy's job, and what makes its run this run."""
        config = compose([*self.overrides, f"strategy={strategy}"])
        job, asked = job_of(check(config)), " ".join(self.overrides)
        names = Names(strategy=strategy, model=self.model, engine=self.engine, workload="decode", overrides=asked)
        return job, identify(config, job, names)

    def load(self) -> None:
        """Load the model and draw its prompt."""
        self.job = job_of(check(compose(self.overrides)))
        self.bench = Bench(self.job, lambda stage, share: None)
        settings = self.job.settings
        self.steps = settings.steps_per_block(self.bench.loaded.view.device.type, step_ms=5.0)
        self.run = RunShape(prompt_lengths=(self.context,), new_tokens=self.steps)
        self.ids = torch.tensor(
            self.bench.sources["baseline"].windows(1, self.context + self.steps), device=self.bench.loaded.view.device
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
        for name, arm in dict(chosen).items():
            reason = arm.strategy.unsupported(arm.view, self.run)
            if reason is not None:
                del chosen[name]
                yield name, {**self.bench.facts, "status": "unsupported", "reason": reason}, []
        weighed = {name: self.memory(arm) for name, arm in chosen.items()}
        prompt = self.ids[:, : self.context]
        prefill = self.paired({n: PrefillArm(a, self.run, prompt) for n, a in chosen.items()}, 1)
        arms = {name: DecodeArm(arm, self.run, self.ids) for name, arm in chosen.items()}
        eager, full = Eager(prefill_chunk=0), chosen["baseline"]
        if type(full.engine) is not Eager:
            beside = replace(full, engine=eager, view=replace(full.view, replays=False))
            decode = self.paired({**arms, BESIDE: DecodeArm(beside, self.run, self.ids)}, self.steps)
            self.beside = self._gained(decode)
        else:
            decode = self.paired(arms, self.steps)
        bandwidth = stream_bandwidth(self.bench.loaded.view.device, self.job.settings.threads)
        reads = {name: weights_read(chosen[name].model) + weighed[name]["kv_used_bytes"] for name in arms}
        regime = roofline.regime(
            read_bytes=reads["baseline"],
            cache_bytes=cache_share_bytes(),
            device_type=self.bench.loaded.view.device.type,
            is_launch_bound=statistics.is_launch_bound(decode, "baseline"),
        )
        for name in chosen:
            row = {**self.bench.facts, **weighed[name], "regime": regime, "prompt_tokens": self.context}
            row |= {"new_tokens": self.steps, "ttft_ms": latency_of(prefill.samples, name).p50_ms}
            row |= latency_columns(decode.samples, name, self.run) | energy_columns(decode, name, self.run)
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

    def _gained(self, decode: PairedSamples) -> Row:
        """Return how long a recorded step of the full cache takes beside an eager one."""
        found = statistics.weigh(decode, BESIDE, "median").ratio
        if found is None:
            return {}
        turned = statistics.Interval(value=1 / found.value, low=1 / found.high, high=1 / found.low)
        return {
            "model": self.model,
            "prompt_tokens": self.context,
            "eager_ms": latency_of(decode.samples, BESIDE).p50_ms,
            "recorded_ms": latency_of(decode.samples, "baseline").p50_ms,
            **interval_columns("ratio", turned),
        }

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
        job, identity = self.identity(name)
        run_id = identity.pop("run_id")
        with open_draft(out.parent, sweep=out.name, run_id=run_id, force=False) as draft:
            draft.finish([{**identity, **describe(job, "strategy"), **row}], steps)


def main() -> None:
    """Print the table and leave its runs in a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["llama-3.2-1b", "llama-3.1-8b"])
    parser.add_argument("--contexts", type=int, nargs="+", default=[2048, 16384])
    parser.add_argument("--engines", nargs="+", default=ENGINES)
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seconds", type=float, default=25.0)
    arguments = parser.parse_args()
    started, out = time.monotonic(), arguments.out
    gained = []
    for model, context, engine in itertools.product(arguments.models, arguments.contexts, arguments.engines):
        cell = Cell(model, context, engine, arguments.device, arguments.dtype, arguments.seconds)
        ids = [cell.identity(name)[1]["run_id"] for name in arguments.strategies]
        if all(finished(out.parent, sweep=out.name, run_id=str(run_id)) for run_id in ids):
            continue
        cell.load()
        for name, row, steps in cell.rows(tuple(arguments.strategies)):
            cell.write(out, name, row, steps)
        gained += [cell.beside] if cell.beside else []
        print(f"{model} at {context}, {engine}: {time.monotonic() - started:.0f} s", flush=True)
        del cell
        gc.collect()
    rows = load(out)
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {rows['device_name'].iloc[0]}")
    for frame in (rows.reindex(columns=SHOWN), pd.DataFrame(gained)):
        if len(frame) > 0:
            print(frame.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    if gained:
        pd.DataFrame(gained).to_parquet(out / "recorded_over_eager.parquet")


if __name__ == "__main__":
    main()
