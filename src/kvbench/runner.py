"""The whole story of a run: identity, measuring processes, rows, files."""

from __future__ import annotations

import hashlib
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from kvbench import children
from kvbench.configuration import Checked, build_group, compose, resolved
from kvbench.configuration.errors import hint
from kvbench.configuration.identity import config_json, short_hash
from kvbench.configuration.plugins import plugin_hash
from kvbench.engines.batcher import Batcher
from kvbench.engines.black_box import BlackBoxEngine
from kvbench.engines.eager import Eager
from kvbench.engines.schedulers import Scheduler
from kvbench.job import Job, Measured, Row
from kvbench.measure.environment import environment, source_hash
from kvbench.measure.host import LocalHost
from kvbench.models.load import device_of, origin_of
from kvbench.models.spec import ModelSpec
from kvbench.results.folder import IDENTITY_FILE, Draft, finished, open_draft
from kvbench.results.load import load
from kvbench.strategies.base import CacheStrategy
from kvbench.strategies.black_box import BlackBox
from kvbench.strategies.layout.paged import Paged
from kvbench.strategies.transform.matched import Matched
from kvbench.workloads.asked import Asked
from kvbench.workloads.perplexity import Perplexity
from kvbench.workloads.requests import Requests

Progress = Callable[[str, float], None]

READ_HERE = ("path", "squad", "hotpotqa", "trace")  # settings of workloads that name files of this machine


@dataclass(frozen=True, kw_only=True)
class Names:
    """What was chosen, by name.

    Args:
        strategy: the strategy.
        model: the model.
        engine: the engine.
        workload: the workload.
        overrides: what was typed.
    """

    strategy: str
    model: str
    engine: str
    workload: str
    overrides: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished run.

    Args:
        rows: one per arm.
        folder: where its files are.
        is_new: whether it ran now; otherwise its rows were there already.
        warning: what went wrong beside the run, or None.
    """

    rows: pd.DataFrame
    folder: Path
    is_new: bool
    warning: str | None = None


def run(config: DictConfig, checked: Checked, *, names: Names, progress: Progress) -> Result:
    """Measure one strategy on one model and one workload, unless that has been done.

    Args:
        config: resolved, without Hydra's own node.
        checked: the objects made of it.
        names: what was chosen.
        progress: told the stage and how much of it is done.

    Raises:
        ValueError: if the run cannot be what is asked, before anything is loaded.
        StorageError: if its results cannot be written.
    """
    job = job_of(checked)
    check_lengths(job)
    job.settings.check_threads(LocalHost().num_cpus)
    identity = identify(config, job, names)
    runs, run_id = Path(config.runs), identity.pop("run_id")
    there = finished(runs, sweep=checked.sweep, run_id=run_id)
    if there is not None and not config.force:
        return Result(rows=load(there), folder=there, is_new=False)
    if isinstance(job.workload, Asked | Perplexity):
        job.workload.bring()
    children.start()
    with open_draft(runs, sweep=checked.sweep, run_id=run_id, force=config.force) as draft:
        draft.write_json(IDENTITY_FILE, {key: value for key, value in identity.items() if key != "config_json"})
        started = time.monotonic()
        measured = _whatever_happens(job, draft, progress)
        draft.log(f"measured in {time.monotonic() - started:.1f} s")
        draft.write_text("config.yaml", OmegaConf.to_yaml(config, resolve=True))
        draft.write_json("env.json", environment(identity["device"]))
        draft.write_json("texts.json", measured.texts)
        rows = [{**identity, **describe(job, arm), **row} for arm, row in measured.rows.items()]
        place = draft.finish(rows, measured.steps, measured.requests, measured.samples)
    warning = checked.sink.mirror(place.folder)
    return Result(rows=load(place.folder), folder=place.folder, is_new=place.is_new, warning=warning)


def job_of(checked: Checked) -> Job:
    """Return what the measuring processes are told."""
    told = (checked.engine, checked.scheduler, checked.workload)
    if len({isinstance(part, kind) for part, kind in zip(told, (Batcher, Scheduler, Requests), strict=True)}) > 1:
        raise ValueError(
            "engine=batcher, workload=requests and a scheduler= such as fcfs or lpm go together: it takes requests in "
            "as they arrive, and other engines run one batch from its first token to its last. Choose all three, or "
            "none of them; strategy=scheduling_lpm and its like do."
        )
    if isinstance(checked.engine, BlackBoxEngine):
        checked.engine.check(checked.strategy)
    elif isinstance(checked.strategy, BlackBox):
        raise ValueError(f"strategy= names a cache that engine={checked.strategy.engine} alone has. Leave engine= out.")
    pieces = isinstance(checked.strategy, CacheStrategy) and checked.strategy.trigger.packs_pieces
    if pieces and (not isinstance(checked.engine, Eager) or checked.engine.prefill_chunk == 0):
        raise ValueError(
            "strategy/trigger=every_chunk packs a prompt in the pieces it is read in, and here it is read at once. Set "
            "engine.prefill_chunk=256 with engine=eager, compiled or recorded, or strategy/trigger=prefill_end."
        )
    name = "scheduling_fcfs" if isinstance(checked.engine, Batcher) else "baseline"
    baseline = build_group(resolved(compose([f"strategy={name}"]))["strategy"], "strategy")
    if isinstance(checked.strategy, BlackBox):
        refuse_parts(checked.strategy, baseline)
    return Job(
        spec=checked.model,
        strategy=checked.strategy,
        baseline=baseline if checked.compare == "baseline" else None,
        engine=checked.engine,
        scheduler=checked.scheduler,
        workload=checked.workload,
        quality=checked.quality,
        settings=checked.measure,
        seed=checked.seed,
        matched=_matched(checked),
    )


def _matched(checked: Checked) -> ModelSpec | None:
    """Return the model that the strategy runs on, where it is not the one that was chosen."""
    if isinstance(checked.strategy, BlackBox) or not isinstance(checked.strategy.transform, Matched):
        return None
    transform = checked.strategy.transform
    model, kind, key = checked.model, transform.kind, "strategy.transform.kind"
    name, known = model.matched.get(kind, ""), [kind for kind, name in model.matched.items() if name]
    if not name:
        add = f"{'' if kind in model.matched else '+'}model.matched.{kind or '<kind>'}=<a model's name>"
        raise ValueError(
            f"{key}={kind}: model={model.name} names no such network of its size. "
            f"{hint(kind, known, prefix=f'{key}=', label='It names')} {add} names another."
        )
    node = resolved(compose([f"model={name}", f"model.dtype={model.dtype}", f"model.device={model.device}"]))["model"]
    found: ModelSpec = build_group(node, "model")
    return found


def refuse_parts(black_box: BlackBox, full: CacheStrategy) -> None:
    """Refuse parts that a cache of transformers' would not have, whatever the command line says."""
    for part in (field.name for field in fields(CacheStrategy)):
        if getattr(black_box, part) != getattr(full, part):
            raise ValueError(
                f"strategy.{part} is not the full cache's, but a cache of transformers' is not made of parts; leave "
                f"strategy/{part}= and strategy.{part}.* out, or choose strategy=baseline with them."
            )


def check_lengths(job: Job) -> None:
    """Refuse a workload that is too long for the model, with the numbers."""
    if isinstance(job.engine, Batcher) and isinstance(job.strategy.layout, Paged):
        job.engine.pages(job.workload.runs()[-1], job.strategy.page_tokens)
    most = job.spec.max_positions
    for shape in job.workload.runs():
        total = shape.prompt_tokens + (shape.new_tokens or 0)
        if most is not None and total > most:
            raise ValueError(
                f"{shape.prompt_tokens} prompt tokens and {shape.new_tokens} new ones are {total}, but "
                f"model={job.spec.title} reads at most {most} positions; lower {_lengths_of(job)} or choose another "
                f"model."
            )
    quality = job.quality.longest_window
    if most is not None and quality > most:
        raise ValueError(
            f"quality reads windows of {quality} tokens, but model={job.spec.title} reads at most {most} positions; "
            f"lower quality.context_tokens and quality.attention_tokens, or set quality=none."
        )


def _lengths_of(job: Job) -> str:
    """Return which keys say how long prompts are."""
    if not isinstance(job.workload, Requests):
        return "workload.prompt_tokens"
    return "workload.length_scale" if job.workload.trace else "workload.tree, workload.own_tokens or workload.turns"


def identify(config: DictConfig, job: Job, names: Names) -> Row:
    """Return what makes this run this run, its id among them."""
    asked = config_json(config)
    device, weights = str(device_of(job.spec)), origin_of(job.spec)
    plugins = plugin_hash(resolved(config))
    parts = [names.strategy, asked, source_hash(), device, weights, *_read_here(job.workload)]
    parts += [plugins] if plugins else []
    if job.matched is not None:
        parts.append(f"{job.matched} {origin_of(job.matched)}")
    if _missing(job) is not None:
        parts.append("unavailable")  # once what is missing is there, it is another run
    return {
        "run_id": short_hash("\n".join(parts)),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "strategy": names.strategy,
        "model": names.model,
        "engine": names.engine,
        "workload": names.workload,
        "seed": job.seed,
        "config_hash": short_hash(asked),
        "config_json": asked,
        "overrides": names.overrides,
        "weights": weights,
        "source_hash": source_hash(),
        "plugin_hash": plugins or None,
        "device": device,
    }


def _read_here(workload: Any) -> Iterator[str]:
    """Yield hashes of the files of this machine that a workload reads: another text is another run."""
    for place in (Path(path) for name in READ_HERE if (path := getattr(workload, name, ""))):
        for file in sorted(place.iterdir()) if place.is_dir() else [place]:
            if file.is_file():
                yield f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}"


def describe(job: Job, arm: str) -> Row:
    """Return what is known of an arm without measuring it."""
    strategy = job.strategy if arm == "strategy" else job.baseline
    assert strategy is not None
    shape = job.workload.runs()[-1]
    comparison = "none" if job.baseline is None else "unpaired" if isinstance(job.engine, BlackBoxEngine) else "paired"
    return {
        "arm": arm,
        **({"strategy": "baseline"} if arm == "baseline" else {}),
        **({"engine": "eager"} if arm == "baseline" and comparison == "unpaired" else {}),
        "evidence": "measured",
        "comparison": comparison,
        "batch_size": shape.batch_size,
        "prompt_tokens": shape.prompt_tokens,
        "new_tokens": shape.new_tokens,
        "saving": strategy.saving,
        "fidelity": strategy.fidelity,
        "decode_rule": strategy.keeps_budget,
        "data_dependent": strategy.data_dependent,
        "query_aware": getattr(job.workload, "query_aware", False),
        "statistic": strategy.statistic,
        "budget_unit": getattr(strategy.budget, "unit", None),
        "budget_amount": getattr(strategy.budget, "amount", None),
    }


def _whatever_happens(job: Job, draft: Draft, progress: Progress) -> Measured:
    """Measure, and turn what nobody foresaw into a row; what the user or the machine has to mend is raised."""
    try:
        return measure(job, draft.log, progress, draft.journal)
    except (ValueError, OSError):
        raise
    except Exception as error:  # noqa: BLE001  a sweep does not die of a row
        draft.log(traceback.format_exc())
        status = "out_of_memory" if isinstance(error, MemoryError) else "error"
        return Measured(rows={"strategy": {"status": status, "reason": children.first_line(error)}})


def measure(job: Job, log: Callable[[str], None], progress: Progress, journal: Path | None = None) -> Measured:
    """Run the measuring processes and gather what they bring back; what ends one becomes its row's status.

    Args:
        job: what they are told.
        log: takes what went wrong.
        progress: told the stage and how much of it is done.
        journal: file that answers are written to as they come; None where nothing is asked.
    """
    if isinstance(job.engine, BlackBoxEngine):
        return _beside_black_box(job, log, progress)
    missing = _missing(job)
    if missing is not None:
        return Measured(rows={"strategy": {"status": "unavailable", "reason": missing}})
    timing, weighing = "worker:time_and_quality", "worker:weigh"
    if isinstance(job.engine, Batcher):
        timing, weighing = "serve:serve", "serve:weigh_requests"
    timed = _call(timing, job, log=log, job=job, progress=progress)
    if isinstance(timed, Measured):
        for name, row in timed.rows.items():
            if row["status"] == "ok":
                weighed = _call(weighing, job, name, log=log, job=job, progress=progress)
                row |= weighed.rows["strategy"] if isinstance(weighed, Measured) else weighed
        asks = isinstance(job.workload, Asked | Perplexity)
        if asks and journal is not None and timed.rows["strategy"]["status"] == "ok":
            _add_answers(job, timed, log, progress, journal)
        return timed
    return Measured(rows={"strategy": timed})


def _add_answers(job: Job, measured: Measured, log: Callable[[str], None], progress: Progress, journal: Path) -> None:
    """Ask the arms, and put what they answered beside what they took."""
    found = _call("answering:answer", job, str(journal), log=log, job=job, progress=progress, renews=True)
    if isinstance(found, Measured):
        measured.samples = found.samples
        for name, row in found.rows.items():
            measured.rows[name] |= row
    else:
        measured.rows["strategy"] |= found


def _missing(job: Job) -> str | None:
    """Return what a model, a black box, its attention or a workload lacks here, or None."""
    told = (job.spec, job.strategy, job.engine, job.workload)
    parts = (part for part in told if isinstance(part, ModelSpec | BlackBox | BlackBoxEngine | Asked))
    return next((reason for part in parts if (reason := part.unavailable()) is not None), None)


def _beside_black_box(job: Job, log: Callable[[str], None], progress: Progress) -> Measured:
    """Run a black box alone, and our full cache apart from it."""
    assert isinstance(job.engine, BlackBoxEngine)
    missing = _missing(job)
    found: Measured | Row = {"status": "unavailable", "reason": missing}
    if missing is None:
        found = _call("generating:time_black_box", job, log=log, job=job, progress=progress)
    out = found if isinstance(found, Measured) else Measured(rows={"strategy": found})
    if out.rows["strategy"]["status"] == "ok" and not job.engine.is_elsewhere:
        weighed = _call("generating:weigh_black_box", job, log=log, job=job, progress=progress)
        out.rows["strategy"] |= weighed.rows["strategy"] if isinstance(weighed, Measured) else weighed
    if job.baseline is None:
        return out
    from kvbench.engines.eager import Eager

    alone = replace(job, engine=Eager(prefill_chunk=0), strategy=job.baseline, baseline=None)
    baseline = measure(alone, log, progress)
    out.rows["baseline"] = baseline.rows["strategy"]
    out.steps += [{**step, "arm": "baseline"} for step in baseline.steps]
    out.texts |= {"baseline": baseline.texts["strategy"]} if "strategy" in baseline.texts else {}
    return out


def _call(
    function: str,
    *arguments: Any,
    log: Callable[[str], None],
    job: Job,
    progress: Progress,
    renews: bool = False,
) -> Measured | Row:
    limit_s = job.settings.timeout_s
    outcome = children.call(f"kvbench.{function}", *arguments, timeout_s=limit_s, progress=progress, renews=renews)
    if outcome.status == "ok":
        value: Measured = outcome.value
        return value
    log(f"{function}: {outcome.status}: {outcome.reason}\n{outcome.log}")
    return {"status": outcome.status, "reason": outcome.reason}
