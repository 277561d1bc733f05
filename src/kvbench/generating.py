"""What a measuring process does with a black box: times it alone, weighs it, and holds its tokens against ours."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from kvbench.bench import source_of
from kvbench.cache.doors import ATTENTION
from kvbench.columns import above, facts, latency_columns
from kvbench.engines.arm import Arm, generate
from kvbench.engines.black_box import BlackBoxEngine, Generated
from kvbench.engines.eager import Eager
from kvbench.engines.stock import Stock
from kvbench.job import Job, Measured, Row
from kvbench.measure.memory import MemoryMeter, return_large_blocks
from kvbench.measure.paired import garbage_kept
from kvbench.measure.samples import Sample
from kvbench.models.load import load
from kvbench.strategies.black_box import BlackBox
from kvbench.types import RunShape

Report = Callable[[str, float], None]


def time_black_box(job: Job, report: Report) -> Measured:
    """Let an engine generate on its own, again and again, and note every token's arrival."""
    box = _Loaded(job, report)
    row: Row = facts(job, box.loaded, box.attention)
    reason = (
        box.spread()
        or box.strategy.cannot_change(box.loaded.view)
        or box.engine.unsupported(box.loaded)
        or box.strategy.unsupported(box.loaded.view, box.run)
    )
    if reason is not None:
        return Measured(rows={"strategy": {**row, "status": "unsupported", "reason": reason}})
    ours = box.our_tokens()
    started = time.monotonic()
    with box.engine.opened(box.loaded, box.strategy, box.run) as session:
        first = session.generate(box.prompt)
        row |= {**session.facts, "setup_s": time.monotonic() - started, **_held(first)}
        steps = _again_and_again(job, lambda: session.generate(box.prompt), box.run, report)
    row["ttft_ms"] = median(step["wall_ns"] for step in steps if step["phase"] == "prefill") / 1e6
    decode = [_sample(step) for step in steps if step["phase"] == "decode"]
    if decode:
        row |= latency_columns(decode, "strategy", box.run)
    if ours is not None:
        row |= box.compared(first.tokens, ours)
    tokenizer = box.loaded.tokenizer
    texts = {} if tokenizer is None else {"strategy": tokenizer.batch_decode(first.tokens)}
    return Measured(rows={"strategy": row}, steps=steps, texts=texts)


def weigh_black_box(job: Job, report: Report) -> Measured:
    """Measure the memory of an engine that runs in this process, alone and untimed."""
    return_large_blocks()
    box = _Loaded(job, report)
    box.generate()  # libraries' own workspace
    meter = MemoryMeter(box.loaded.view.device, others=box.loaded.view.devices[1:])
    meter.settle()
    idle = meter.held_bytes()
    meter.reset()
    made = box.generate()
    row: Row = {
        **_held(made),
        "idle_bytes": idle,
        "peak_bytes": above(meter.peak_bytes(), idle),
        "resident_bytes": meter.resident_bytes(),
    }
    return Measured(rows={"strategy": row})


class _Loaded:
    """A model, a prompt, and the engine that goes on from it."""

    def __init__(self, job: Job, report: Report) -> None:
        assert isinstance(job.engine, BlackBoxEngine)
        assert isinstance(job.strategy, BlackBox)
        torch.set_num_threads(job.settings.threads)
        torch.set_grad_enabled(False)
        report("load", 0.0)
        self.engine, self.strategy, self.baseline = job.engine, job.strategy, job.baseline
        self.attention = job.engine.attention if isinstance(job.engine, Stock) else "sdpa"
        self.loaded = load(job.spec, seed=job.seed, attention=self.attention)
        self.run = job.workload.runs()[-1]
        ids = torch.tensor(job.workload.ids(source_of(job, self.loaded), self.run), device=self.loaded.view.device)
        self.prompt = ids[:, : self.run.prompt_tokens]

    def spread(self) -> str | None:
        """Return why a model whose layers are on several devices cannot be run, or None."""
        if not self.loaded.view.places:
            return None
        return (
            "model.device_map has put layers on several devices, and this engine keeps its own cache on one; use "
            "engine=eager, or leave model.device_map out"
        )

    def generate(self) -> Generated:
        """Start the engine and generate once."""
        with self.engine.opened(self.loaded, self.strategy, self.run) as session:
            return session.generate(self.prompt)

    def our_tokens(self) -> Tensor | None:
        """Return what our own full cache generates [B, new_tokens], or None where there is none that can."""
        if self.baseline is None or not self.run.new_tokens:
            return None
        model, view = self.loaded.model, self.loaded.view
        arm = Arm(name="baseline", model=model, view=view, strategy=self.baseline, engine=Eager(prefill_chunk=0))
        model.set_attn_implementation(ATTENTION)  # type: ignore[operator]
        try:
            return generate(arm, self.run, self.prompt)
        except ValueError:  # the model asks our attention for what it does not do: the baseline's own row says so
            return None
        finally:
            model.set_attn_implementation(self.attention)  # type: ignore[operator]

    def compared(self, tokens: Tensor, ours: Tensor) -> Row:
        """Return how far an engine's tokens [B, T] are ours, and how near ours was to another choice there."""
        same, row = equal_tokens(tokens.to(ours.device), ours)
        if row is None:
            return {"equal_tokens": same}
        read = torch.cat([self.prompt[row], ours[row, :same]])[None]
        best, second = self.loaded.model(read, use_cache=False).logits[0, -1].topk(2).values.tolist()
        return {"equal_tokens": same, "divergence_margin": best - second}


def equal_tokens(tokens: Tensor, ours: Tensor) -> tuple[int, int | None]:
    """Return how many tokens all rows [B, T] share with ours before one does not, and a row that it is in, if any."""
    differs = tokens != ours
    if not differs.any():
        return ours.shape[1], None
    same = int(differs.any(dim=0).int().argmax())
    return same, int(differs[:, same].int().argmax())


def _held(made: Generated) -> Row:
    """Return what a cache holds."""
    return {
        "kv_allocated_bytes": made.cache_bytes,
        "kv_used_bytes": made.used_bytes,
        "host_bytes": made.host_bytes,
        "disk_bytes": 0,
        **({} if made.resident_bytes is None else {"resident_bytes": made.resident_bytes}),
    }


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
