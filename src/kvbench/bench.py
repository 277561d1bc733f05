"""One loaded model, the arms on it, and what is asked of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.kv_cache import ATTENTION
from kvbench.columns import facts, interval_columns, latency_columns, latency_of, roofline_columns, weights_read
from kvbench.engines.arm import Arm, DecodeArm, PrefillArm, generate
from kvbench.job import Job, Measured
from kvbench.measure import roofline, statistics
from kvbench.measure.clock import clock_for
from kvbench.measure.environment import available_ram_bytes, cache_share_bytes
from kvbench.measure.hardware import stream_bandwidth
from kvbench.measure.host import LocalHost
from kvbench.measure.paired import measure_paired
from kvbench.measure.samples import PairedSamples
from kvbench.measure.settings import Settings
from kvbench.models.load import Loaded, device_of, load, probe, skeleton
from kvbench.models.spec import TINY
from kvbench.models.view import view_of
from kvbench.quality.evaluate import bits_per_byte, likelihood, recall
from kvbench.strategies.base import CacheStrategy
from kvbench.types import RunShape
from kvbench.workloads.recall import Recall, RecallTasks, draw
from kvbench.workloads.source import TokenSource, read_text

Report = Callable[[str, float], None]

PROBE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}
RANDOM_WINDOW = 16  # tokens through both caches where weights are random: exactness only


class Bench:
    """One loaded model and the arms on it."""

    def __init__(self, job: Job, report: Report) -> None:
        torch.set_num_threads(job.settings.threads)
        torch.set_grad_enabled(False)
        self.job, self.report = job, report
        report("load", 0.0)
        check_memory(job)
        self.loaded: Loaded = load(job.spec, seed=job.seed, attention=ATTENTION)
        self.source = source_of(job, self.loaded)
        self.arms = {"strategy": self._arm("strategy", job.strategy)}
        if job.baseline is not None:
            self.arms["baseline"] = self._arm("baseline", job.baseline)
        self.facts = facts(job, self.loaded, ATTENTION)
        self.measured = Measured(rows={name: dict(self.facts) for name in self.arms})

    def _arm(self, name: str, strategy: CacheStrategy) -> Arm:
        return Arm(
            name=name,
            model=strategy.prepare(self.loaded.model),
            view=self.loaded.view,
            strategy=strategy,
            engine=self.job.engine,
        )

    def ids(self, run: RunShape) -> Tensor:
        """Return the workload's token ids [B, prompt + new]."""
        return torch.tensor(self.job.workload.ids(self.source, run), device=self.loaded.view.device)

    def refused(self) -> str | None:
        """Return why the strategy cannot run, or None; the two doors are compared with the stock forward."""
        view = self.loaded.view
        for run in self.job.workload.runs():
            reason = self.job.strategy.unsupported(view, run)
            if reason is not None:
                return reason
        if self.job.baseline is None:
            return None
        arm = self.arms["baseline"]
        tokens = torch.tensor(self.source.windows(1, 16), device=view.device)
        difference = probe(self.loaded.model, "sdpa", ATTENTION, lambda ids: through_cache(arm, ids), tokens)
        if difference > PROBE_TOLERANCE[view.dtype]:
            return (
                f"logits through the cache differ from the stock forward by {difference:.1e} of the largest logit: "
                f"{type(self.loaded.model).__name__} has an attention feature that is not implemented"
            )
        return None

    # -- time ---------------------------------------------------------------------------------------------------

    def time_prefill(self, run: RunShape) -> None:
        """Time reading the prompt."""
        prompt = self.ids(run)[:, : run.prompt_tokens]
        arms = {name: PrefillArm(arm, run, prompt) for name, arm in self.arms.items()}
        settings = replace(self.job.settings, cell_seconds=self.job.settings.cell_seconds / 2)
        paired = self._paired(arms, 1, settings, "prefill")
        self._record(paired, phase="prefill", position=0, tokens=run.prompt_tokens * run.batch_size)
        for name in self.arms:
            self.measured.rows[name]["ttft_ms"] = latency_of(paired.samples, name).p50_ms
        ratio = self._evidence(paired)
        if ratio is not None and ratio.ratio is not None:
            self.measured.rows["strategy"] |= interval_columns("ttft_ratio", ratio.ratio)

    def time_decode(self, run: RunShape) -> None:
        """Time decoding from the end of the prompt, beside the bytes it must read."""
        assert run.new_tokens is not None
        ids, settings = self.ids(run), self.job.settings
        arms = {name: DecodeArm(arm, run, ids) for name, arm in self.arms.items()}
        steps = min(run.new_tokens, settings.steps_per_block(self.loaded.view.device.type, 1.0))
        if steps < 2:
            return
        self.report("bandwidth", 0.0)
        bandwidth = stream_bandwidth(self.loaded.view.device, settings.threads)
        paired = self._paired(arms, steps, settings, "decode")
        self._record(paired, phase="decode", position=run.prompt_tokens, tokens=run.batch_size)
        reads = {}
        for name, arm in arms.items():
            arm.restore()
            reads[name] = weights_read(self.loaded) + arm.cache.used_bytes()
            self.measured.rows[name] |= latency_columns(paired.samples, name, run)
            self.measured.rows[name] |= roofline_columns(reads[name], bandwidth, self.measured.rows[name]["decode_p50_ms"])
            self.measured.rows[name]["setup_s"] = paired.warmup_s
        self._compare(paired, reads)

    def _compare(self, paired: PairedSamples, reads: dict[str, int]) -> None:
        evidence = self._evidence(paired)
        row = self.measured.rows["strategy"]
        if evidence is None:
            return
        regime = roofline.regime(
            read_bytes=reads["baseline"],
            cache_bytes=cache_share_bytes(),
            device_type=self.loaded.view.device.type,
            is_launch_bound=statistics.is_launch_bound(paired, "baseline"),
        )
        row["ceiling"] = roofline.ceiling(reads["baseline"], reads["strategy"])
        limits = self.job.settings.limits(self.loaded.view.device.type)
        row["verdict"], row["reason"] = statistics.judge(evidence, regime, limits)
        row["rounds"], row["dirty_share"] = evidence.rounds, evidence.dirty_share
        for name in self.arms:
            self.measured.rows[name]["regime"] = regime
        if evidence.ratio is not None:
            row |= interval_columns("ratio", evidence.ratio)
        if regime == "memory_bound":
            self._check_physics(evidence)
        if evidence.aa is not None:
            row |= {"aa_ratio": evidence.aa.value, "aa_low": evidence.aa.low, "aa_high": evidence.aa.high}

    def _check_physics(self, evidence: statistics.Evidence) -> None:
        """Fail a run that is faster than its bytes allow.

        On a CPU only the floor is certain: attention may be bound by arithmetic, and what a strategy saves there is
        no byte. On a GPU the ratio must not beat its ceiling either.
        """
        rows = self.measured.rows
        for name in self.arms:
            roofline.check_floor(rows[name]["decode_p50_ms"], rows[name]["floor_ms"])
        if evidence.ratio is not None and self.loaded.view.device.type == "cuda":
            ratio = evidence.ratio
            roofline.check_ceiling(ratio.value, ratio.low, ratio.high, rows["strategy"]["ceiling"])

    def _paired(self, arms: Any, steps: int, settings: Settings, stage: str) -> PairedSamples:
        return measure_paired(
            arms,
            baseline="baseline" if "baseline" in arms else None,
            steps=steps,
            statistic="median",
            settings=settings,
            clock=clock_for(self.loaded.view.device),
            host=LocalHost(),
            progress=lambda share: self.report(stage, share),
        )

    def _evidence(self, paired: PairedSamples) -> statistics.Evidence | None:
        return statistics.weigh(paired, "strategy", "median") if paired.baseline is not None else None

    def _record(self, paired: PairedSamples, *, phase: str, position: int, tokens: int) -> None:
        for record in paired.records():
            step = record["index_in_block"] if phase == "decode" else 0
            assert isinstance(step, int)
            self.measured.steps.append({**record, "phase": phase, "position": position + step, "tokens": tokens})

    # -- quality ------------------------------------------------------------------------------------------------

    def ask_likelihood(self) -> None:
        """Compare both arms on held-out text; on random weights only the logits are compared."""
        quality, is_random = self.job.quality, self.loaded.weights == "random"
        if "baseline" not in self.arms or quality.text_windows == 0:
            return
        context = self.job.workload.runs()[-1].prompt_tokens if is_random else quality.context_tokens
        scored = RANDOM_WINDOW if is_random else quality.scored_tokens
        windows = self.source.windows(1 if is_random else quality.text_windows, context + 1 + scored)
        found = likelihood(
            self.arms["strategy"],
            self.arms["baseline"],
            torch.tensor(windows, device=self.loaded.view.device),
            context=context,
            batch_size=quality.batch_size,
            progress=lambda share: self.report("text", share),
        )
        row = self.measured.rows["strategy"]
        row["max_logit_difference"] = found.difference
        if is_random:
            return
        scored_text = [window[context + 2 :] for window in windows]
        num_bytes = sum(len(self.loaded.tokenizer.decode(ids).encode()) for ids in scored_text)  # type: ignore[union-attr]
        for name, nll in zip(("strategy", "baseline"), found.nll, strict=True):
            self.measured.rows[name] |= {
                "nll_nats": nll / found.tokens,
                "bits_per_byte": bits_per_byte(nll, num_bytes),
                "quality_tokens": found.tokens,
            }
        row["nll_delta_nats"] = (found.nll[0] - found.nll[1]) / found.tokens
        row["kl_nats"] = found.kl / found.tokens
        row["top1_agreement"] = found.agree / found.tokens

    def ask_recall(self) -> None:
        """Ask every arm for what was hidden in its context."""
        quality, workload = self.job.quality, self.job.workload
        if self.source.tasks is None:
            return
        if isinstance(workload, Recall):
            samples = {workload.task: workload.draw(self.source.tasks, workload.samples, self.source)}
        elif quality.recall_samples > 0:
            samples = {
                task: draw(
                    self.source.tasks, task, quality.recall_samples, quality.recall_tokens, quality.pairs, self.job.seed, False
                )
                for task in ("key_value", "passkey")
            }
        else:
            return
        aware = isinstance(workload, Recall) and workload.question_in_cache
        for name, arm in self.arms.items():
            for task, mine in samples.items():
                self.measured.rows[name][f"recall_{task}"] = recall(
                    arm,
                    mine,
                    question_in_cache=aware,
                    batch_size=workload.batch_size if isinstance(workload, Recall) else quality.batch_size,
                    progress=lambda share, task=task: self.report(f"recall {task}", share),
                )
                self.measured.rows[name]["recall_samples"] = len(mine)

    def write_text(self) -> None:
        """Let every arm continue the prompt on its own."""
        run = self.job.workload.runs()[-1]
        if self.loaded.tokenizer is None or not run.new_tokens or run.new_tokens < 2:
            return
        prompt = self.ids(run)[:, : run.prompt_tokens]
        self.measured.texts["prompt"] = self.loaded.tokenizer.batch_decode(prompt)
        for name, arm in self.arms.items():
            self.report("generate", 0.0)
            self.measured.texts[name] = self.loaded.tokenizer.batch_decode(generate(arm, run, prompt))


def source_of(job: Job, loaded: Loaded) -> TokenSource:
    """Return where a job's token ids come from."""
    vocabulary = loaded.model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    if loaded.tokenizer is None:
        return TokenSource(
            prefix=(), text=(), vocabulary=vocabulary, seed=job.seed, name="random ids", tasks=None
        )
    path = job.workload.path or str(TINY / "held_out.txt")
    ids = loaded.tokenizer(read_text(path), add_special_tokens=False, verbose=False).input_ids
    prefix = tuple(loaded.tokenizer("").input_ids)
    held_out = loaded.tokenizer(read_text(str(TINY / "held_out.txt")), add_special_tokens=False, verbose=False)
    try:
        tasks = RecallTasks.build(loaded.tokenizer, held_out.input_ids)
    except ValueError:
        if isinstance(job.workload, Recall):
            raise
        tasks = None
    return TokenSource(
        prefix=prefix, text=tuple(ids), vocabulary=vocabulary, seed=job.seed, name=path, tasks=tasks
    )


def through_cache(arm: Arm, ids: Tensor) -> Tensor:
    """Return the logits [1, T, V] of ids through the cache, the second half one at a time."""
    half = ids.shape[1] // 2
    run = RunShape(prompt_lengths=(half,), new_tokens=ids.shape[1] - half)
    cache = arm.cache(run)
    first = arm.model(ids[:, :half], past_key_values=cache, use_cache=True, position_ids=cache.position_ids(half))
    rest = [arm.step(cache, ids[:, at : at + 1])[:, None] for at in range(half, ids.shape[1])]
    return torch.cat([first.logits, *rest], dim=1)


def check_memory(job: Job) -> None:
    """Refuse, before the model is loaded, what cannot fit.

    Raises:
        MemoryError: with the numbers.
    """
    model = skeleton(job.spec)
    view = replace(view_of(model), dtype=getattr(torch, job.spec.dtype))
    weights = sum(p.numel() for p in model.parameters()) * view.dtype.itemsize
    shapes = job.workload.runs()
    strategies = [strategy for strategy in (job.strategy, job.baseline) if strategy is not None]
    caches = sum(max(strategy.allocated_bytes(view, shape) for shape in shapes) for strategy in strategies)
    device = device_of(job.spec)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_ram_bytes()
    if free is not None and weights + caches > free:
        gib = 2**30
        raise MemoryError(
            f"weights of {weights / gib:.1f} GiB and caches of {caches / gib:.1f} GiB for "
            f"{shapes[-1].batch_size} x {shapes[-1].prompt_tokens} tokens exceed the {free / gib:.1f} GiB free on "
            f"{device}; lower workload.batch_size or workload.prompt_tokens, or set model.dtype=bfloat16"
        )
