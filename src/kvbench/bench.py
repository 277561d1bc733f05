"""One loaded model and the arms on it: what is timed, weighed and asked questions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kvbench.cache.doors import ATTENTION
from kvbench.columns import facts
from kvbench.engines.arm import Arm
from kvbench.engines.batcher import Batcher
from kvbench.engines.black_box import BlackBoxEngine
from kvbench.engines.eager import Eager
from kvbench.job import Job, Measured, Row
from kvbench.measure.environment import available_ram_bytes
from kvbench.models.load import Loaded, device_of, load, probe, skeleton
from kvbench.models.spec import TINY
from kvbench.models.view import view_of, weights_bytes
from kvbench.strategies.base import CacheStrategy
from kvbench.types import ModelView, RunShape
from kvbench.workloads.recall import RecallTasks
from kvbench.workloads.source import TokenSource, read_text

Report = Callable[[str, float], None]

PROBE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}


class Bench:
    """One loaded model and the arms on it."""

    def __init__(self, job: Job, report: Report) -> None:
        torch.set_num_threads(job.settings.threads)
        torch.set_grad_enabled(False)
        assert not isinstance(job.engine, BlackBoxEngine), "a black box runs alone"
        self.job, self.report = job, report
        self.engine = job.engine if isinstance(job.engine, Eager) else Eager(prefill_chunk=0)
        report("load", 0.0)
        check_memory(job)
        rows = self.engine.in_rows
        self.loaded: Loaded = load(job.spec, seed=job.seed, attention=ATTENTION, in_rows=rows)
        self.on = {"baseline": self.loaded, "strategy": self.loaded}  # which model each arm is made of
        self.sources = dict.fromkeys(self.on, source_of(job, self.loaded))
        if job.matched is not None:
            self.on["strategy"] = load(job.matched, seed=job.seed, attention=ATTENTION, in_rows=rows)
            self.sources["strategy"] = source_of(job, self.on["strategy"])
        self.facts = facts(job, self.loaded, ATTENTION)
        self.arms: dict[str, Arm] = {}
        self.unsupported = self.engine.unsupported(self.loaded.view) or self._prepare_strategy()
        if job.baseline is not None:
            self.arms["baseline"] = self._arm("baseline", job.baseline)
        self.measured = Measured(
            rows={
                name: {**self.facts, "weights_bytes": weights_bytes(arm.model), **self._network(name)}
                for name, arm in self.arms.items()
            }
        )

    def _arm(self, name: str, strategy: CacheStrategy) -> Arm:
        loaded = self.on[name]
        model = self.engine.prepare(strategy.prepare(loaded.model))
        view = self.engine.view(strategy.transform.view(model, loaded.view))
        return Arm(name=name, model=model, view=view, strategy=strategy, engine=self.engine)

    def _network(self, name: str) -> Row:
        """Return which other model an arm runs on, if it does, and whether it is one that was never trained."""
        other, loaded = None if name == "baseline" else self.job.matched, self.on[name]
        said: Row = {} if other is None else {"network": f"{other.name} ({loaded.weights}, {loaded.revision})"}
        is_random = other is not None and loaded.weights == "random"
        return {**said, "fidelity": "structure_only"} if is_random or self.arms[name].view.is_untrained else said

    def _prepare_strategy(self) -> str | None:
        """Make the strategy's arm, or return why there is none."""
        made = self.job.on_its_network
        reason = made.cannot_change(self.on["strategy"].view)
        if reason is not None:
            return reason
        try:
            arm = self._arm("strategy", made)
        except ValueError as error:  # the network cannot be changed so
            return str(error)
        reasons = (made.unsupported(arm.view, run) for run in self.job.workload.runs())
        reason = next((reason for reason in reasons if reason is not None), None)
        if reason is None and isinstance(self.job.engine, Batcher):
            reason = made.cannot_share(arm.view)
        self.arms |= {"strategy": arm} if reason is None else {}
        return reason

    def alone(self, name: str) -> Arm:
        """Return an arm, and let go of the others and of the weights that only they need."""
        self.arms = {name: self.arms[name]}
        self.loaded = replace(self.on[name], model=self.arms[name].model)
        self.on = {name: self.loaded}
        return self.arms[name]

    def ids(self, run: RunShape, name: str) -> Tensor:
        """Return the workload's token ids [B, prompt + new], as an arm's own tokenizer makes them."""
        return torch.tensor(self.job.workload.ids(self.sources[name], run), device=self.loaded.view.device)

    def is_mute(self, name: str) -> bool:
        """Return whether an arm has nothing to say: never trained, or without a tokenizer for what it would."""
        loaded = self.on[name]
        return loaded.weights == "random" or loaded.tokenizer is None or self.arms[name].view.is_untrained

    def guess_nats(self, name: str) -> float:
        """Return the loss per token of whoever takes all tokens for equally likely."""
        network: Any = self.on[name].model
        return math.log(network.config.get_text_config().vocab_size)

    def refused(self) -> str | None:
        """Return why the strategy cannot run, or None; the two doors are compared with the stock forward."""
        if self.unsupported is not None or self.job.baseline is None:
            return self.unsupported
        return self._probed("baseline") or (None if self.job.matched is None else self._probed("strategy"))

    def _probed(self, name: str) -> str | None:
        assert self.job.baseline is not None
        loaded, arm = self.on[name], replace(self.arms[name], strategy=self.job.baseline)
        tokens = torch.tensor(self.sources[name].windows(1, 16), device=loaded.view.device)
        difference = probe(loaded.model, "sdpa", ATTENTION, lambda ids: through_cache(arm, ids), tokens)
        if difference > PROBE_TOLERANCE[loaded.view.dtype]:
            return (
                f"logits through the cache differ from the stock forward by {difference:.1e} of the largest logit: "
                f"{type(loaded.model).__name__} has an attention feature that is not implemented"
            )
        return None


def source_of(job: Job, loaded: Loaded) -> TokenSource:
    """Return where a job's token ids come from."""
    vocabulary = loaded.model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    if loaded.tokenizer is None:
        return TokenSource(prefix=(), text=(), vocabulary=vocabulary, seed=job.seed, name="random ids", tasks=None)
    path = job.workload.text_path or str(TINY / "held_out.txt")
    ids = loaded.tokenizer(read_text(path), add_special_tokens=False, verbose=False).input_ids
    prefix = tuple(loaded.tokenizer("").input_ids)
    held_out = loaded.tokenizer(read_text(str(TINY / "held_out.txt")), add_special_tokens=False, verbose=False)
    try:
        tasks = RecallTasks.build(loaded.tokenizer, held_out.input_ids)
    except ValueError:  # said to whoever needs them
        tasks = None
    return TokenSource(
        prefix=prefix,
        text=tuple(ids),
        vocabulary=vocabulary,
        seed=job.seed,
        name=path,
        tasks=tasks,
        tokenizer=loaded.tokenizer,
    )


def through_cache(arm: Arm, ids: Tensor) -> Tensor:
    """Return the logits [1, T, V] of ids through the cache, the second half one at a time."""
    half = ids.shape[1] // 2
    run = RunShape(prompt_lengths=(half,), new_tokens=ids.shape[1] - half)
    cache = arm.cache(run)
    first = arm.model(ids[:, :half], past_key_values=cache, use_cache=True, position_ids=cache.position_ids(half))
    rest = [arm.step(cache, ids[:, at : at + 1])[:, None] for at in range(half, ids.shape[1])]
    return torch.cat([first.logits, *rest], dim=1)


def _memory_bytes(job: Job, made: CacheStrategy, view: ModelView, device: torch.device) -> int:
    """Return the bytes of a cache in the device's memory, which on a CPU is the host's as well."""
    changed = made.transform.shapes(view)
    runs, is_host = job.workload.runs(), device.type == "cpu"
    if not isinstance(job.engine, Batcher):
        host = (made.bytes_elsewhere(changed, run).host if is_host else 0 for run in runs)
        return max(made.allocated_bytes(changed, run) + more for run, more in zip(runs, host, strict=True))
    if made.cannot_share(changed) is not None:
        return 0
    return made.pool_bytes(changed, job.engine.pages(runs[-1], made.page_tokens))


def check_memory(job: Job) -> None:
    """Refuse, before the model is loaded, what cannot fit.

    Raises:
        MemoryError: with the numbers.
    """
    shapes, device = job.workload.runs(), device_of(job.spec)
    made_on = [(job.spec, [job.strategy, job.baseline])]
    if job.matched is not None:
        made_on = [(job.matched, [job.on_its_network]), (job.spec, [job.baseline])]
    weights = caches = 0
    for spec, strategies in made_on:
        view = view_of(skeleton(spec))
        weights += view.sizes.weights_bytes
        for made in strategies:
            if made is not None and made.cannot_change(view) is None:
                caches += _memory_bytes(job, made, view, device)
    free = available_ram_bytes()
    if device.type == "cuda":
        one = job.spec.device_map == "none"
        free = sum(torch.cuda.mem_get_info(gpu)[0] for gpu in ([device] if one else range(torch.cuda.device_count())))
    if free is not None and weights + caches > free:
        gib, keys = 2**30, "workload.batch_size or workload.prompt_tokens"
        if isinstance(job.engine, Batcher):
            keys = "engine.kv_tokens or workload.num_requests"
        raise MemoryError(
            f"weights of {weights / gib:.1f} GiB and caches of {caches / gib:.1f} GiB for "
            f"{shapes[-1].batch_size} x {shapes[-1].prompt_tokens} tokens exceed the {free / gib:.1f} GiB free on "
            f"{device}; lower {keys}, or set model.dtype=bfloat16"
        )
