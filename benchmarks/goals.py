"""The decode path against its goals on one CPU thread: every ratio in pairs, inside one process.

    python -m benchmarks.goals --out benchmarks/results/cpu_goals

Models have random weights (time and bytes count, quality does not). Contexts restart at the same length in every
block. Writes one parquet of timed steps, one of reached goals, and prints the latter.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import torch
from transformers import DynamicCache, StaticCache

from kvbench import children
from kvbench.bench import Bench
from kvbench.cache.doors import ATTENTION
from kvbench.cache.plan import grown
from kvbench.columns import above
from kvbench.configuration import build_group, check, compose, resolved
from kvbench.engines.arm import Arm, DecodeArm
from kvbench.engines.compiled import Compiled
from kvbench.engines.recorded import Recorded
from kvbench.job import Job, Measured
from kvbench.measure.blocks import run_block
from kvbench.measure.clock import HostClock
from kvbench.measure.hardware import stream_bandwidth
from kvbench.measure.host import LocalHost
from kvbench.measure.memory import MemoryMeter
from kvbench.measure.paired import measure_paired
from kvbench.measure.roofline import floor_ms
from kvbench.measure.samples import PairedSamples, again
from kvbench.measure.settings import Settings
from kvbench.measure.statistics import latency, ratio_interval
from kvbench.results.folder import RUN_FILE, STEPS_FILE, open_draft
from kvbench.runner import job_of
from kvbench.types import RunShape

BLOCK = 8
GROUPED = ("strategy.transform.num_groups=2",)  # of llama8's 8 heads
SIZES = ("model.weights=random", "model.architecture.vocab_size=32000", "model.architecture.hidden_size=512")
RECURRENT = {  # as wide as llama8, and as many parameters between the embedding and the head
    "mamba": ("mamba-130m", "model.architecture.num_hidden_layers=16", *SIZES),
    "rwkv": ("rwkv-4-169m", "model.architecture.num_hidden_layers=8", *SIZES),
}
COMPILED, RECORDED = Compiled(prefill_chunk=0), Recorded(prefill_chunk=0)
FASTER = {"compiled": COMPILED, "recorded": RECORDED}
PARTS = ("transformers", "compiled", "evicting", "growing", "grouped", "states", "efficiency", "memory", "suite")
FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures" / "runs"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One promise and what became of it.

    Args:
        name: id of the goal and what it compares.
        at_most: the promise.
        reached: what was measured.
        low: lower end of its interval, where it is a ratio of times.
        high: upper end.
    """

    name: str
    at_most: float
    reached: float
    low: float | None = None
    high: float | None = None


class Bare:
    """The decode loop without clock, marks or harness: a block is one step."""

    def __init__(self, arm: DecodeArm) -> None:
        self.arm = arm

    def restore(self) -> None:
        """Go back to the end of the prompt."""
        self.arm.restore()

    def step(self) -> None:
        """Decode a block."""
        for _ in range(BLOCK):
            self.arm.step()


class Harness(Bare):
    """The same block as it is timed: with a mark per token."""

    def step(self) -> None:
        """Decode a block."""
        run_block(BLOCK, self.arm.step, HostClock())


class Dynamic:
    """The same model with transformers' DynamicCache and its default attention, in a bare loop."""

    def __init__(self, arm: Arm, run: RunShape, ids: torch.Tensor) -> None:
        self.model: Any = arm.model
        self.ids, self.length = ids, run.prompt_tokens
        self._switch("sdpa")
        self.cache = self._cache(run)
        self.model(ids[:, : self.length], past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self._switch(ATTENTION)
        self.done = 0

    def _cache(self, run: RunShape) -> Any:
        return DynamicCache(config=self.model.config)

    def _switch(self, attention: str) -> None:
        if self.model.config._attn_implementation != attention:
            self.model.set_attn_implementation(attention)

    def restore(self) -> None:
        """Cut the cache back to the prompt."""
        extra = self.cache.get_seq_length() - self.length
        if extra:
            self.cache.crop(-extra)
        self._switch("sdpa")
        self.done = 0

    def step(self) -> None:
        """Decode one token."""
        at = self.length + self.done
        self.model(self.ids[:, at : at + 1], past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.done += 1


class Static(Dynamic):
    """The same with transformers' StaticCache, which is allocated once and as long as it must be."""

    def _cache(self, run: RunShape) -> StaticCache:
        return StaticCache(config=self.model.config, max_cache_len=run.prompt_tokens + BLOCK)

    def restore(self) -> None:
        """Go back to the end of the prompt: what comes next is written over what came."""
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(self.length)
        self._switch("sdpa")
        self.done = 0


class Generate(Dynamic):
    """transformers' generate from the same context: a block is one call."""

    def step(self) -> None:
        """Generate a block."""
        prompt = self.ids[:, : self.length + 1]
        self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            past_key_values=self.cache,
            max_new_tokens=BLOCK,
            min_new_tokens=BLOCK,
            do_sample=False,
            pad_token_id=0,
        )


class Ours(DecodeArm):
    """A decode arm beside arms that switch the model's attention."""

    def restore(self) -> None:
        """Go back to the end of the prompt, with our attention."""
        model: Any = self.arm.model
        if model.config._attn_implementation != ATTENTION:
            model.set_attn_implementation(ATTENTION)
        super().restore()


def job_for(overrides: list[str]) -> Job:
    """Return the job of a command line."""
    return job_of(check(compose(["quality=none", *overrides])))


class Desk:
    """One loaded model and the means to compare arms on it."""

    def __init__(self, model: str, seconds: float, *overrides: str) -> None:
        self.job = job_for([f"model={model}", "model.device=cpu", *overrides])
        self.bench = Bench(self.job, lambda stage, share: None)
        self.settings: Settings = replace(self.job.settings, cell_seconds=seconds, quiet_seconds=10.0)
        self.samples: list[pd.DataFrame] = []
        self.model = model

    def arm(self, strategy: str, *overrides: str) -> Arm:
        """Return a strategy on the model."""
        node = resolved(compose([f"strategy={strategy}", *overrides]))["strategy"]
        made, base = build_group(node, "strategy"), self.bench.arms["baseline"]
        model = made.prepare(base.model)
        return replace(base, name=strategy, strategy=made, model=model, view=made.transform.view(model, base.view))

    def ids(self, tokens: int) -> torch.Tensor:
        """Return random ids."""
        return torch.tensor(self.bench.sources["baseline"].windows(1, tokens))

    def decode(self, strategy: str, context: int, *overrides: str, new_tokens: int | None = BLOCK) -> DecodeArm:
        """Return an arm that decodes from a context."""
        run = RunShape(prompt_lengths=(context,), new_tokens=new_tokens)
        return Ours(self.arm(strategy, *overrides), run, self.ids(context + (new_tokens or BLOCK)))

    def compiled(self, strategy: str, context: int, *overrides: str, engine: Compiled = COMPILED) -> DecodeArm:
        """Return the same arm in an engine that compiles, on a model of its own."""
        arm = self.arm(strategy, *overrides)
        model = engine.prepare(copy.deepcopy(arm.model))
        run = RunShape(prompt_lengths=(context,), new_tokens=BLOCK)
        return Ours(
            replace(arm, model=model, view=engine.view(arm.view), engine=engine), run, self.ids(context + BLOCK)
        )

    def compare(self, title: str, arms: dict[str, Any], *, steps: int = BLOCK) -> PairedSamples:
        """Time arms in pairs against the first of them."""
        paired = measure_paired(
            arms,
            baseline=next(iter(arms)),
            steps=steps,
            statistic="median",
            settings=self.settings,
            clock=HostClock(),
            host=LocalHost(),
            progress=lambda share: None,
        )
        frame = pd.DataFrame(paired.records()).assign(model=self.model, comparison=title)
        self.samples.append(frame)
        return paired


def goal(name: str, at_most: float, paired: PairedSamples, arm: str, baseline: str) -> Goal:
    """Return a goal on a ratio of times."""
    found = ratio_interval(paired.samples, arm, baseline, "median")
    if found is None:
        return Goal(name=f"{name} (no clean rounds)", at_most=at_most, reached=float("nan"))
    return Goal(name=name, at_most=at_most, reached=found.value, low=found.low, high=found.high)


def against_transformers(desk: Desk, contexts: list[int]) -> Iterator[Goal]:
    """C1, C2, C3, C23: our loop beside a bare one, generate and DynamicCache."""
    limits = {512: (0.92, 0.98), 2048: (0.76, 0.90), 8192: (0.57, 0.70)}
    for context in contexts:
        dense = desk.decode("baseline", context)
        run = RunShape(prompt_lengths=(context,), new_tokens=BLOCK)
        ids = desk.ids(context + BLOCK)
        blocks = {"bare": Bare(dense), "harness": Harness(dense)}
        paired = desk.compare(f"harness at {context}", blocks, steps=1)
        yield goal(f"C1 harness / bare loop, {context}", 1.005, paired, "harness", "bare")
        fast = desk.compiled("baseline", context)
        arms = {"generate": Generate(dense.arm, run, ids), "baseline": Bare(dense), "compiled": Bare(fast)}
        paired = desk.compare(f"generate at {context}", arms, steps=1)
        yield goal(f"C2 baseline / generate, {context}", limits[context][0], paired, "baseline", "generate")
        yield goal(f"C2 compiled baseline / generate, {context}", limits[context][0], paired, "compiled", "generate")
        loops = {"dynamic": Dynamic(dense.arm, run, ids), "baseline": dense, "compiled": fast}
        paired = desk.compare(f"dynamic at {context}", loops)
        title = f"baseline / DynamicCache loop, {context}"
        yield goal(f"C3 {title}", limits[context][1], paired, "baseline", "dynamic")
        yield goal(f"C3 compiled {title}", limits[context][1], paired, "compiled", "dynamic")
        paired = desk.compare(f"A/A at {context}", {"baseline": dense})
        aa = goal("", 0, paired, again("baseline"), "baseline")
        yield Goal(name=f"C23 |A/A - 1|, {context}", at_most=0.02, reached=abs(aa.reached - 1))
        gc.collect()


def compiled(desk: Desk, contexts: list[int]) -> Iterator[Goal]:
    """C6, C11, C12, C22: the engines that compile beside the eager one, and packed entries in all of them."""
    limits = {512: 0.93, 2048: 0.90, 8192: 0.85}
    packed = {("C11", "quantization_8bit"): {2048: 0.85, 8192: 0.78}, ("C12", "kivi4"): {8192: 0.83}}
    for context in contexts:
        arms: dict[str, Any] = {}
        for name in ("baseline", "quantization_8bit", "kivi4"):
            arms[name] = desk.decode(name, context)
            arms |= {f"{engine} {name}": desk.compiled(name, context, engine=how) for engine, how in FASTER.items()}
        paired = desk.compare(f"compiled at {context}", arms)
        yield goal(f"C6 compiled / eager baseline, {context}", limits[context], paired, "compiled baseline", "baseline")
        yield goal(f"C6 recorded / compiled baseline, {context}", 1, paired, "recorded baseline", "compiled baseline")
        bandwidth = stream_bandwidth(torch.device("cpu"), desk.settings.threads)
        for engine in FASTER:
            for (number, name), most in packed.items():
                if context in most:
                    title = f"{number} {name} / baseline, both {engine}, {context}"
                    yield goal(title, most[context], paired, f"{engine} {name}", f"{engine} baseline")
            found = latency(paired.samples, f"{engine} baseline")
            if found is not None:
                least = floor_ms(_bytes_read(desk, arms["baseline"]), bandwidth)
                name = f"C22 measured / floor time, {engine}, {context} ({bandwidth / 1e9:.1f} GB/s)"
                yield Goal(name=name, at_most=1 / 0.42, reached=found.p50_ms / least)


def _bytes_read(desk: Desk, dense: DecodeArm) -> int:
    """Return what a step reads: the weights, of the input embeddings a row alone, and the cache."""
    network = desk.bench.loaded.model
    read = sum(p.numel() * 4 for p in network.parameters()) + dense.cache.used_bytes()
    return read - network.get_input_embeddings().weight.numel() * 4  # type: ignore[no-any-return, operator]


def evicting(desk: Desk, context: int, budget: int) -> Iterator[Goal]:
    """C7, C8, C10: decoding from a compressed cache beside the full cache at that length."""
    amount = ["strategy.budget.unit=tokens", f"strategy.budget.amount={budget}"]
    short = desk.decode("baseline", budget)
    arms: dict[str, Any] = {"short": short, "full": desk.decode("baseline", context)}
    limits = {"attention_sink": ("C7", 1.03), "snapkv": ("C8", 1.05), "adakv": ("C8", 1.05)}
    limits |= {"h2o": ("C10", 1.15), "tova": ("C10", 1.15)}
    for name in limits:
        arms[name] = desk.decode(name, context, *amount)
    for name, how in FASTER.items():
        arms[f"{name} short"] = desk.compiled("baseline", budget, engine=how)
        arms[f"{name} full"] = desk.compiled("baseline", context, engine=how)
        arms[f"{name} attention_sink"] = desk.compiled("attention_sink", context, *amount, engine=how)
    run = RunShape(prompt_lengths=(context,), new_tokens=BLOCK)
    arms["static"] = Static(arms["full"].arm, run, desk.ids(context + BLOCK))
    paired = desk.compare(f"evicting {context} to {budget}", arms)
    for name, (number, limit) in limits.items():
        yield goal(f"{number} {name} / baseline at {budget}", limit, paired, name, "short")
    yield goal(f"C7 attention_sink / baseline at {context}", 0.48, paired, "attention_sink", "full")
    yield goal(f"C7 attention_sink / StaticCache loop at {context}", 0.48, paired, "attention_sink", "static")
    for engine in FASTER:
        for at, most, name in ((budget, 1.03, "short"), (context, 0.48, "full")):
            title = f"C7 attention_sink / baseline at {at}, both {engine}"
            yield goal(title, most, paired, f"{engine} attention_sink", f"{engine} {name}")
    for name in ("attention_sink", "snapkv", "adakv"):
        exact = short.cache.allocated_bytes() * budget / (budget + BLOCK)
        yield Goal(
            name=f"C8 {name} steady / {budget} entries",
            at_most=1.05,
            reached=arms[name].cache.allocated_bytes() / exact,
        )


def grouped(desk: Desk, context: int) -> Iterator[Goal]:
    """C17: a quarter of the KV heads beside all of them, and what a step holds beyond the cache: no key twice."""
    arms = {"baseline": desk.decode("baseline", context), "gqa": desk.decode("gqa", context, *GROUPED)}
    for name, more in {"baseline": (), "gqa": GROUPED}.items():
        arms |= {f"{engine} {name}": desk.compiled(name, context, *more, engine=how) for engine, how in FASTER.items()}
    held = [arms[name].cache.allocated_bytes() for name in ("baseline", "gqa")]
    yield Goal(name=f"C17 |gqa / baseline KV bytes / 0.25 - 1|, {context}", at_most=0.01, reached=_off(held, 0.25))
    paired = desk.compare(f"a quarter of the KV heads at {context}", arms)
    yield goal(f"C17 gqa / baseline, {context}", 0.64, paired, "gqa", "baseline")
    for engine in FASTER:
        name = f"C17 gqa / baseline, both {engine}, {context}"
        yield goal(name, 0.64, paired, f"{engine} gqa", f"{engine} baseline")
    del arms
    gc.collect()
    overrides = [f"model={desk.model}", "model.device=cpu", "strategy=gqa", *GROUPED]
    job = job_for([*overrides, f"workload.prompt_tokens={context}", "workload.new_tokens=32"])
    found = _peak("kvbench.worker:weigh", job, "strategy")
    peak = found["decode_peak_bytes"] / found["kv_used_bytes"]
    yield Goal(name=f"C17 gqa decode peak / KV bytes, {context}", at_most=1.03, reached=peak)


def states(desk: Desk, short: int, long: int) -> Iterator[Goal]:
    """C21: networks that keep a state, at two lengths of what they have read, and beside a full cache."""
    dense = desk.decode("baseline", long)
    fast = {name: desk.compiled("baseline", long, engine=how) for name, how in FASTER.items()}
    for name, (model, *overrides) in RECURRENT.items():
        other = Desk(model, desk.settings.cell_seconds, *overrides)
        arms = {"short": other.decode("baseline", short), "long": other.decode("baseline", long), "dense": dense}
        for engine, how in FASTER.items():
            arms |= {f"{engine} long": other.compiled("baseline", long, engine=how), f"{engine} dense": fast[engine]}
        held = [arms[arm].cache.allocated_bytes() for arm in ("short", "long")]
        yield Goal(name=f"C21 |{name} bytes at {long} / {short} - 1|", at_most=0.01, reached=_off(held, 1.0))
        paired = desk.compare(f"{name} at {short} and {long}", arms)
        yield goal(f"C21 {name} at {long} / at {short}", 1.03, paired, "long", "short")
        yield goal(f"C21 {name} / baseline, {long}", 0.6, paired, "long", "dense")
        for engine in FASTER:
            title = f"C21 {name} / baseline, both {engine}, {long}"
            yield goal(title, 0.6, paired, f"{engine} long", f"{engine} dense")
        del other, arms
        gc.collect()


def _off(held: list[int], want: float) -> float:
    """Return by how much the ratio of the second number of bytes to the first is not what it should be."""
    return abs(held[1] / held[0] / want - 1)


def growing(desk: Desk, context: int) -> Iterator[Goal]:
    """C5: a cache of unknown length over a whole period of growth, beside an exact one."""
    period = grown(context) - context + context // 16  # past the first growth
    tokens = desk.decode("baseline", context, new_tokens=period).tokens

    def fresh(new_tokens: int | None) -> DecodeArm:
        arm = desk.decode("baseline", context, new_tokens=new_tokens)
        arm.tokens = tokens
        return arm

    desk.settings = replace(desk.settings, cell_seconds=90.0)
    arms = {"exact": Whole(lambda: fresh(period), period), "growing": Whole(lambda: fresh(None), period)}
    paired = desk.compare(f"growing at {context}", arms, steps=1)
    yield goal(f"C5 growing / exact over {period} steps, {context}", 1.03, paired, "growing", "exact")
    open_ended = arms["growing"].arm
    held = open_ended.cache.used_bytes()
    yield Goal(
        name=f"C5 allocated / used bytes, {context}", at_most=1.30, reached=open_ended.cache.allocated_bytes() / held
    )


class Whole(Bare):
    """A whole period as one step, from a new cache each time: growth happens once in it."""

    def __init__(self, make: Callable[[], DecodeArm], steps: int) -> None:
        super().__init__(make())
        self.make, self.steps = make, steps

    def restore(self) -> None:
        """Build the cache anew and read the prompt; untimed."""
        self.arm = self.make()

    def step(self) -> None:
        """Decode a period."""
        for _ in range(self.steps):
            self.arm.step()


def efficiency(desk: Desk, context: int) -> Iterator[Goal]:
    """C22: the full cache beside the time its bytes take at the bandwidth measured here and now."""
    dense = desk.decode("baseline", context)
    bandwidth = stream_bandwidth(torch.device("cpu"), desk.settings.threads)
    paired = desk.compare(f"efficiency at {context}", {"baseline": dense})
    found = latency(paired.samples, "baseline")
    assert found is not None
    reached = floor_ms(_bytes_read(desk, dense), bandwidth) / found.p50_ms
    yield Goal(
        name=f"C22 measured / floor time at {context} ({bandwidth / 1e9:.1f} GB/s)",
        at_most=1 / 0.36,
        reached=1 / reached,
    )


def memory(model: str, context: int) -> Iterator[Goal]:
    """C4, C7: what decoding holds at most, beyond the weights, each in a process of its own."""
    overrides = [f"model={model}", "model.device=cpu", f"workload.prompt_tokens={context}", "workload.new_tokens=32"]
    job = job_for(overrides)
    alone = _peak("kvbench.worker:weigh", job, "baseline")
    yield Goal(
        name=f"C4 baseline decode peak / KV bytes, {context}",
        at_most=1.03,
        reached=alone["decode_peak_bytes"] / alone["kv_used_bytes"],
    )
    ours, dynamic, generate = (
        _peak("benchmarks.goals:weigh_loop", job, name)["decode_peak_bytes"] for name in ("Ours", "Dynamic", "Generate")
    )
    yield Goal(name=f"C4 baseline decode peak / DynamicCache loop's, {context}", at_most=0.70, reached=ours / dynamic)
    yield Goal(name=f"C4 baseline decode peak / generate's, {context}", at_most=0.65, reached=ours / generate)
    sink = job_for([*overrides, "strategy=attention_sink", "strategy.budget.unit=tokens", "strategy.budget.amount=256"])
    found = _peak("kvbench.worker:weigh", sink, "strategy")
    yield Goal(
        name=f"C7 attention_sink decode peak - window [MiB], {context}",
        at_most=2.0,
        reached=(found["decode_peak_bytes"] - found["kv_used_bytes"]) / 2**20,
    )


def weigh_loop(job: Job, name: str, report: Callable[[str, float], None]) -> Measured:
    """Measure what decoding holds at most, alone in this process, with the system's own allocator as users have it."""
    bench, run = Bench(job, report), job.workload.runs()[-1]
    arm, ids = bench.arms["baseline"], bench.ids(run, "baseline")
    meter = MemoryMeter(bench.loaded.view.device)

    def loop(run: RunShape) -> Ours | Dynamic:
        return (
            Ours(arm, run, ids) if name == "Ours" else {"Dynamic": Dynamic, "Generate": Generate}[name](arm, run, ids)
        )

    warm = loop(RunShape(prompt_lengths=(16,), new_tokens=BLOCK))  # libraries' own workspace
    warm.restore()
    warm.step()
    del warm
    meter.settle()
    idle = meter.held_bytes()
    decoding = loop(run)
    decoding.restore()
    meter.settle()
    meter.reset()
    for _ in range(1 if name == "Generate" else BLOCK):  # the same tokens
        decoding.step()
    return Measured(rows={"strategy": {"decode_peak_bytes": above(meter.peak_bytes(), idle)}})


def suite() -> Iterator[Goal]:
    """C24: what a user waits for around the measurements: whole processes, and the writing of a row."""
    for name, at_most, command in (
        ("import kvbench", 0.15, [sys.executable, "-c", "import kvbench"]),
        ("kvbench --help", 0.5, [str(Path(sys.executable).parent / "kvbench"), "--help"]),
    ):
        seconds = [_seconds(command) - _seconds([sys.executable, "-c", ""]) for _ in range(5)]
        yield Goal(name=f"C24 {name} [s, above a bare interpreter]", at_most=at_most, reached=median(seconds))
    seconds = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, file in enumerate(sorted(FIXTURES.rglob(RUN_FILE))):
            rows, steps = (pq.read_table(file.parent / name).to_pylist() for name in (RUN_FILE, STEPS_FILE))
            with open_draft(Path(scratch), sweep="suite", run_id=str(number), force=False) as draft:
                started = time.perf_counter()
                draft.finish(rows, steps)
                seconds.append((time.perf_counter() - started) / len(rows))
    yield Goal(name="C24 writing a row and its steps [ms]", at_most=5.0, reached=1e3 * median(seconds))


def _seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def _peak(function: str, job: Job, *arguments: str) -> dict[str, Any]:
    outcome = children.call(function, job, *arguments, timeout_s=600, progress=lambda stage, share: None)
    assert outcome.status == "ok", outcome
    row: dict[str, Any] = outcome.value.rows["strategy"]
    return row


def main() -> None:
    """Measure all goals and write what was reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="llama8")
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    desk = Desk(arguments.model, arguments.seconds)
    longest = arguments.contexts[-1]
    parts: dict[str, Callable[[], Iterator[Goal]]] = {
        "transformers": lambda: against_transformers(desk, arguments.contexts),
        "compiled": lambda: compiled(desk, arguments.contexts),
        "evicting": lambda: evicting(desk, longest, 256),
        "growing": lambda: growing(desk, arguments.contexts[0]),
        "grouped": lambda: grouped(desk, longest),
        "states": lambda: states(desk, arguments.contexts[0], longest),
        "efficiency": lambda: efficiency(desk, longest),
        "memory": lambda: memory(arguments.model, longest),
        "suite": suite,
    }
    goals = []
    for part in arguments.parts:
        for found in parts[part]():
            met = "met" if found.reached <= found.at_most else "MISSED"
            interval = "" if found.low is None else f" [{found.low:.3f}, {found.high:.3f}]"
            print(f"{found.name:58s} <= {found.at_most:5.3f}   {found.reached:.3f}{interval}  {met}", flush=True)
            goals.append(vars(found))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    _merge(arguments.out / "goals.parquet", pd.DataFrame(goals).assign(commit=commit), "name")
    if desk.samples:
        _merge(arguments.out / "steps.parquet", pd.concat(desk.samples).assign(commit=commit), "comparison")
    facts = {**desk.bench.facts, "python": platform.python_version(), "command": vars(arguments)}
    (arguments.out / "hardware.json").write_text(json.dumps(facts, indent=1, default=str) + "\n")


def _merge(file: Path, rows: pd.DataFrame, key: str) -> None:
    """Write rows, in place of those of the same name that are there already."""
    if file.exists():
        before = pd.read_parquet(file)
        kept = before[~before[key].isin(rows[key])]
        rows = pd.concat([kept, rows.astype(kept.dtypes.to_dict())], ignore_index=True) if len(kept) else rows
    rows.to_parquet(file)


if __name__ == "__main__":
    main()
