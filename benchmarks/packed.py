"""Packed, low-rank and shared caches beside the full one, packed ones beside transformers' QuantizedCache as well.

    python -m benchmarks.packed --out benchmarks/results/packed

Model `llama8` with random weights on one CPU thread, or as many as --threads says. Ratios of times are of blocks timed
alternately in one process, with a 95% interval over rounds; peaks are of a fresh process each. Low-rank caches on
`gpt2-16k` as well, whose keys are not rotated. What they know of a model's keys and values is measured first, as
`kvbench calibrate moments` does, on one sample of random ids: which directions are kept is of no account to times and
bytes. Writes one parquet of ratios and one of timed steps.
"""

from __future__ import annotations

import argparse
import gc
import math
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import pandas as pd
import torch
from transformers import QuantizedCache

from benchmarks.budget_curve import NOT_METHODS
from benchmarks.goals import BLOCK, FASTER, Desk, Dynamic, Goal, _peak, goal, job_for
from benchmarks.tables import keep
from kvbench.cache.doors import ATTENTION
from kvbench.cli import calibrate
from kvbench.configuration import build_group, compose, resolved
from kvbench.engines.arm import Arm, DecodeArm, PrefillArm
from kvbench.engines.eager import Eager
from kvbench.measure.paired import garbage_kept
from kvbench.strategies.black_box import BlackBox
from kvbench.types import RunShape

MODEL = "llama8"
HALF = ("strategy/codec@strategy.codec.latent=dense", "strategy.codec.kept=0.5")
LOW_RANK = {f"{name}, half in float32": (name, *HALF) for name in ("eigen_attention", "palu")}
PACKED = ("quantization_8bit", "quantization_4bit", "kivi4", "kivi2", "fp8")
METHODS = (*PACKED, *LOW_RANK, "minicache")
PIECE = 256  # tokens of a prompt that are read at a time
IN_PIECES = (f"engine.prefill_chunk={PIECE}", "strategy/trigger=every_chunk")
EIGEN = next(iter(LOW_RANK))
UNROTATED = "gpt2-16k"
FLUSH_STEPS = 136  # past the first flush of a residual of 128
NO_GOAL = math.inf

STEP_GOALS = {
    ("quantization_8bit", 2048, 1): 0.85,
    ("quantization_8bit", 8192, 1): 0.78,
    ("quantization_8bit", 8192, 2): 0.70,
    ("kivi4", 8192, 1): 0.83,
    ("kivi2", 8192, 1): 0.95,
    ("minicache", 8192, 1): 1.05,
}
QUANTO_GOALS = {512: 0.90, 2048: 0.55, 8192: 0.30}
COLUMNS = {"decode peak": "decode_peak_bytes", "peak": "peak_bytes", "bytes held": "kv_allocated_bytes"}
PEAK_GOALS = {"quantization_8bit": 0.32, "kivi4": 0.25, "kivi2": 0.18, "minicache": 0.80, EIGEN: 0.55}


class Quantized(Dynamic):
    """The same model with transformers' QuantizedCache and its default attention, in a bare loop."""

    def __init__(self, arm: Arm, run: RunShape, ids: torch.Tensor) -> None:
        self.model: Any = arm.model
        config: Any = self.model.config
        self.ids, self.length = ids, run.prompt_tokens
        self._switch("sdpa")
        self.cache: Any = QuantizedCache("quanto", config, nbits=4, residual_length=128)
        self.model(ids[:, : self.length], past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self._switch(ATTENTION)
        self._snapshot = [dict(vars(layer)) for layer in self.cache.layers]  # its tensors are replaced, never changed
        self.done = 0

    def restore(self) -> None:
        """Go back to the end of the prompt."""
        for layer, held in zip(self.cache.layers, self._snapshot, strict=True):
            vars(layer).clear()
            vars(layer).update(held)
        self._switch("sdpa")
        self.done = 0


def steps(desk: Desk, context: int, methods: Sequence[str], moments: str, engine: str) -> Iterator[Goal]:
    """Decode steps over the full cache's, at the same context and in the same engine."""
    decode = desk.decode if engine == "eager" else partial(desk.compiled, engine=FASTER[engine])
    full, threads = decode("baseline", context), desk.settings.threads
    suffix = (f", {threads} threads" if threads > 1 else "") + (f", both {engine}" if engine != "eager" else "")
    for method in methods:
        name, *overrides = asked(method, moments)
        mine = decode(name, context, *overrides)
        paired = desk.compare(f"{method} at {context}{suffix}", {"baseline": full, method: mine})
        limit = STEP_GOALS.get((method, context, threads), NO_GOAL)
        yield goal(f"{method} / baseline, {context}{suffix}", limit, paired, method, "baseline")
        gc.collect()


def unrotated(desk: Desk) -> Desk:
    """Return a desk for the model whose keys are not rotated, which keeps its samples with another's."""
    other = Desk(UNROTATED, desk.settings.cell_seconds)
    other.samples = desk.samples
    return other


def asked(method: str, moments: str) -> tuple[str, ...]:
    """Return a method's strategy and what is overridden in it."""
    return (*LOW_RANK[method], f"strategy.codec.moments={moments}") if method in LOW_RANK else (method,)


def low_rank(desk: Desk, context: int, moments: str) -> Iterator[Goal]:
    """Decode steps and bytes of low-rank caches over the full cache's, where keys are not rotated."""
    full = desk.decode("baseline", context)
    for method in LOW_RANK:
        name, *overrides = asked(method, moments)
        mine = desk.decode(name, context, *overrides)
        title = f"{method} / baseline, {desk.model}, {context}"
        paired = desk.compare(title, {"baseline": full, method: mine})
        yield goal(title, 1.0 if method == EIGEN else NO_GOAL, paired, method, "baseline")
        held = mine.cache.allocated_bytes() / full.cache.allocated_bytes()
        yield Goal(name=f"bytes of {title}", at_most=0.55, reached=held)
        gc.collect()


def beside_quanto(desk: Desk, context: int) -> Iterator[Goal]:
    """Decode steps of kivi4 over those of transformers' QuantizedCache with quanto at the same bits and residual."""
    mine = desk.decode("kivi4", context)
    run = RunShape(prompt_lengths=(context,), new_tokens=BLOCK)
    theirs = Quantized(mine.arm, run, desk.ids(context + BLOCK))
    paired = desk.compare(f"quanto at {context}", {"quanto": theirs, "kivi4": mine})
    mine.restore()  # the model's attention as well
    limit = QUANTO_GOALS.get(context, NO_GOAL)
    yield goal(f"kivi4 / QuantizedCache quanto, {context}", limit, paired, "kivi4", "quanto")


def prompts(desk: Desk, context: int) -> Iterator[Goal]:
    """Prompts read in pieces, packed at their end or piece by piece, over the full cache's in the same pieces."""
    run, prompt = RunShape(prompt_lengths=(context,), new_tokens=1), desk.ids(context)
    for method in PACKED:
        arms = {
            "full": desk.arm("baseline"),
            "at the end": desk.arm(method),
            "in pieces": desk.arm(method, *IN_PIECES[1:]),
        }
        engine = Eager(prefill_chunk=PIECE)
        timed = {name: PrefillArm(replace(arm, engine=engine), run, prompt) for name, arm in arms.items()}
        paired = desk.compare(f"prompts of {method} at {context}", timed, steps=1)
        for name in ("at the end", "in pieces"):
            title = f"{method}'s prompt packed {name} / baseline, {context} in pieces of {PIECE}"
            yield goal(title, NO_GOAL, paired, name, "full")


def flush(desk: Desk, context: int) -> Iterator[Goal]:
    """The largest step that packs, and the mean one, over the median, in passes of as many steps."""
    arm = desk.decode("kivi4", context, new_tokens=FLUSH_STEPS)
    largest: list[float] = []
    average: list[float] = []
    rows: list[dict[str, Any]] = []
    begun = time.monotonic()
    while len(largest) < 3 or time.monotonic() - begun < desk.settings.cell_seconds:
        taken, packs = timed(arm)
        assert any(packs), "no step packed; raise FLUSH_STEPS"
        middle = median(taken)
        largest.append(max(ns for ns, packed in zip(taken, packs, strict=True) if packed) / middle)
        average.append(mean(taken) / middle)
        rows += [
            {"round": len(largest) - 1, "index_in_block": index, "wall_ns": ns, "packs": packed}
            for index, (ns, packed) in enumerate(zip(taken, packs, strict=True))
        ]
    desk.samples.append(pd.DataFrame(rows).assign(arm="kivi4", model=MODEL, comparison=f"flush at {context}"))
    for name, found, limit in (("largest", largest, 1.5), ("mean", average, 1.03)):
        yield Goal(
            name=f"kivi4's {name} step{' that packs' * (name == 'largest')} / median, {context}",
            at_most=limit,
            reached=median(found),
            low=min(found),
            high=max(found),
        )


def timed(arm: DecodeArm) -> tuple[list[int], list[bool]]:
    """Return the nanoseconds of each step of a pass, and which steps packed: fewer numbers were exact after them."""
    arm.restore()
    taken, packs = [], []
    with garbage_kept():
        for _ in range(FLUSH_STEPS):
            before = arm.cache.shares()["exact_share"]
            started = time.perf_counter_ns()
            arm.step()
            taken.append(time.perf_counter_ns() - started)
            packs.append(arm.cache.shares()["exact_share"] < before)
    return taken, packs


def peaks(context: int, moments: str) -> Iterator[Goal]:
    """What a method holds at most beyond the weights, over the bytes of the full cache in float32."""
    shape = [f"model={MODEL}", "model.device=cpu", f"workload.prompt_tokens={context}", "workload.new_tokens=32"]

    def weighed(strategy: str, *overrides: str) -> dict[str, Any]:
        return _peak("kvbench.worker:weigh", job_for([*shape, f"strategy={strategy}", *overrides]), "strategy")

    full = weighed("baseline")

    def share(name: str, what: str, row: dict[str, Any], limit: float = NO_GOAL) -> Goal:
        reached = row[COLUMNS[what]] / full["kv_used_bytes"]
        return Goal(name=f"{name}'s {what} / fp32 KV, {context}", at_most=limit, reached=reached)

    for method in ("baseline", *METHODS):
        row, limit = weighed(*asked(method, moments)), PEAK_GOALS.get(method, NO_GOAL)
        yield share(method, "decode peak", row, limit)
        yield share(method, "peak", row, limit)
        yield share(method, "bytes held", row)
    for method in ("baseline", *PACKED):
        row = weighed(method, *(IN_PIECES if method != "baseline" else IN_PIECES[:1]))
        yield share(f"{method}, {PIECE} tokens at a time", "peak", row, PEAK_GOALS.get(method, NO_GOAL))
    for name in NOT_METHODS[1:]:
        missing = black_box(name).unavailable()
        if missing is not None:
            print(f"{name} is left out: {missing}", flush=True)
            continue
        row = _peak("kvbench.generating:weigh_black_box", job_for([*shape, f"strategy={name}"]))
        yield share(name, "peak", row)
        yield share(name, "bytes held", row)


def black_box(name: str) -> BlackBox:
    """Return a cache of transformers'."""
    made = build_group(resolved(compose([f"strategy={name}"]))["strategy"], "strategy")
    assert isinstance(made, BlackBox)
    return made


def shown(found: Goal) -> str:
    """Return a line: name, ratio, interval, goal."""
    interval = "" if found.low is None else f" [{found.low:.3f}, {found.high:.3f}]"
    if math.isnan(found.reached):
        return found.name
    met = "met" if found.reached <= found.at_most else "MISSED"
    limit = "" if found.at_most == NO_GOAL else f"  <= {found.at_most:.2f} {met}"
    return f"{found.name:54s} {found.reached:.3f}{interval}{limit}"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=20.0, help="per comparison")
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="whose steps are timed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engine", choices=["eager", *FASTER], default="eager", help="in which steps are timed")
    parser.add_argument("--parts", nargs="+", default=["steps", "low_rank", "prompts", "quanto", "flush", "peaks"])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_grad_enabled(False)
    desk = Desk(MODEL, arguments.seconds, f"measure.threads={arguments.threads}")
    with tempfile.TemporaryDirectory() as folder:
        for model in (MODEL, UNROTATED) if "low_rank" in arguments.parts else (MODEL,):
            overrides = [f"model={model}", "model.device=cpu"]
            calibrate.main("moments", overrides, config_dir=None, samples=1, tokens=1024, out=folder)
        measured(desk, arguments, folder)


def measured(desk: Desk, arguments: argparse.Namespace, moments: str) -> None:
    """Measure the parts asked for, print and write."""
    contexts, longest = arguments.contexts, arguments.contexts[-1]
    parts: dict[str, Callable[[], Iterator[Goal]]] = {
        "steps": lambda: (
            found
            for context in contexts
            for found in steps(desk, context, arguments.methods, moments, arguments.engine)
        ),
        "low_rank": lambda: low_rank(unrotated(desk), longest, moments),
        "prompts": lambda: (found for context in contexts for found in prompts(desk, context)),
        "quanto": lambda: (found for context in contexts for found in beside_quanto(desk, context)),
        "flush": lambda: flush(desk, longest),
        "peaks": lambda: peaks(longest, moments),
    }
    missing = black_box("hf_quanto").unavailable()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    rows = []
    for part in arguments.parts:
        if part == "quanto" and missing is not None:
            print(f"QuantizedCache is left out: {missing}", flush=True)
            continue
        for found in parts[part]():
            print(shown(found), flush=True)
            rows.append(
                {"part": part, "model": UNROTATED if part == "low_rank" else MODEL, "commit": commit, **vars(found)}
            )
            frame = pd.DataFrame(rows)
            frame["at_most"] = frame["at_most"].astype(float).replace(NO_GOAL, float("nan"))
            keep(frame, arguments.out / "ratios.parquet", ["part", "name"])
            if desk.samples:
                keep(pd.concat(desk.samples).assign(commit=commit), arguments.out / "steps.parquet", ["comparison"])


if __name__ == "__main__":
    main()
