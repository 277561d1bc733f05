"""A strategy that hides memory, leaves hooks or changes the ids is caught; so is a timer that beats physics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from kvbench.api import strategy
from kvbench.bench import Bench
from kvbench.configuration import check, compose
from kvbench.honesty import Misbehaviour, watched
from kvbench.job import Job
from kvbench.measure.blocks import WorkLeftRunning
from kvbench.measure.clock import Duration, HostClock, Mark
from kvbench.measure.roofline import CeilingBeaten
from kvbench.runner import job_of
from kvbench.strategies.base import CacheStrategy
from kvbench.timing import time_decode, time_prefill
from kvbench.worker import time_and_quality, weigh
from tests.mutants.strategies import ChangesIds, Hoards, LeavesHooks, ScoresNothing, ScoresTooMuch
from tests.support.small import checkpoint, spec

QUICK = ["quality=none", "measure.cell_seconds=0.5", "measure.min_rounds=2", "measure.max_rounds=2"]
SHORT = ["workload.prompt_tokens=64", "workload.new_tokens=8", "measure.quiet_seconds=0"]


def job(built: CacheStrategy) -> Job:
    """Return a quick job on a small random model."""
    return replace(job_of(check(compose([*QUICK, *SHORT]))), spec=spec(), strategy=built)


def as_kind(kind: type[CacheStrategy]) -> CacheStrategy:
    """Return the parts of h2o under another class."""
    parts = strategy("h2o")
    return kind(**{field.name: getattr(parts, field.name) for field in fields(parts)})


def silent(stage: str, share: float) -> None:
    """Report to nobody."""


def bench(built: CacheStrategy) -> Bench:
    """Return the loaded bench of a quick job."""
    return Bench(job(built), silent)


def test_honest_strategies_pass_all_of_it() -> None:
    made = bench(strategy("h2o"))
    run = made.job.workload.runs()[0]
    time_prefill(made, run)
    time_decode(made, run)
    row = weigh(made.job, "strategy", silent).rows["strategy"]
    assert row["kv_allocated_bytes"] == row["kv_predicted_bytes"]


@pytest.mark.parametrize(("longest_ms", "steps"), [(1e6, 8), (0.0, 5)])
def test_a_block_has_fewer_steps_where_they_are_slow(
    monkeypatch: pytest.MonkeyPatch, longest_ms: float, steps: int
) -> None:
    monkeypatch.setattr("kvbench.measure.settings.SLOW_BLOCK_MS", longest_ms)
    made = bench(strategy("h2o"))
    time_decode(made, made.job.workload.runs()[0])
    assert {step["index_in_block"] for step in made.measured.steps} == set(range(steps))


@pytest.mark.parametrize(("name", "has_tables"), [("baseline", False), ("lorc", True)])
def test_tables_that_the_warm_up_made_are_the_caches_memory(
    name: str, has_tables: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = 10**9
    monkeypatch.setattr("kvbench.worker.MemoryMeter.held_bytes", lambda meter: held)
    made = bench(strategy(name))
    run, arm = made.job.workload.runs()[-1], made.arms["strategy"]
    caches = [arm.cache(run) for _ in range(2)]
    for cache in caches:
        arm.prefill(cache, made.ids(run, "strategy")[:, : run.prompt_tokens])
    storages = [[t.untyped_storage() for t in cache.tensors()] for cache in caches]
    first, second = ({storage.data_ptr(): storage.nbytes() for storage in mine} for mine in storages)
    tables = sum(first[address] for address in first.keys() & second.keys())
    row = weigh(made.job, "strategy", silent).rows["strategy"]
    assert (tables > 0) == has_tables
    assert (row["idle_bytes"], row["steady_bytes"]) == (held - tables, tables)


def test_scores_that_are_no_numbers_are_caught() -> None:
    made = bench(replace(strategy("keydiff"), scorer=ScoresNothing()))
    with pytest.raises(Misbehaviour, match=r"ScoresNothing.prompt returned scores that are not a number"):
        time_decode(made, made.job.workload.runs()[0])
    time_prefill(made, made.job.workload.runs()[0])  # what is timed is not looked at


def test_scores_of_another_shape_are_refused_by_name() -> None:
    made = bench(replace(strategy("keydiff"), scorer=ScoresTooMuch()))
    with pytest.raises(ValueError, match=r"ScoresTooMuch.prompt must return a score for each entry \[1, 2, 64\]; got"):
        time_prefill(made, made.job.workload.runs()[0])


def test_a_checkpoint_without_a_tokenizer_has_times_and_no_quality(tmp_path: Path) -> None:
    asked = job_of(check(compose([*QUICK, *SHORT, "quality=default"])))
    told = replace(asked, spec=spec(weights="auto", path=str(checkpoint(tmp_path / "mine"))), strategy=strategy("h2o"))
    row = time_and_quality(told, silent).rows["strategy"]
    assert row["decode_p50_ms"] > 0
    assert row["max_logit_difference"] > 0
    assert not {"nll_nats", "recall_passkey", "attention_lost"} & set(row)
    assert (told.spec.title, spec().title) == ("mine", "small")


def test_hidden_memory_is_caught() -> None:
    with pytest.raises(Misbehaviour, match=r"holds 1048576 bytes of tensors that its cache does not report"):
        weigh(job(as_kind(Hoards)), "strategy", silent)


def test_hooks_left_on_the_model_are_caught() -> None:
    made = bench(as_kind(LeavesHooks))
    with pytest.raises(Misbehaviour, match="hooks on the model"):
        time_prefill(made, made.job.workload.runs()[0])


def test_changed_token_ids_are_caught() -> None:
    made = bench(as_kind(ChangesIds))
    run = made.job.workload.runs()[0]
    ids = torch.ones_like(made.ids(run, "strategy"))
    ChangesIds.ids.append(ids)
    with pytest.raises(Misbehaviour, match="changed the token ids"), watched(made.loaded.model, ids):
        made.arms["strategy"].cache(run)


class HastyClock(HostClock):
    """A timer that misses most of the work."""

    def durations(self, marks: Sequence[Mark]) -> list[Duration]:
        """Return a ten-thousandth of the truth."""
        return [duration._replace(wall_ns=max(1, duration.wall_ns // 10_000)) for duration in super().durations(marks)]


def test_a_timer_that_beats_physics_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench(strategy("h2o"))
    monkeypatch.setattr("kvbench.timing.cache_share_bytes", lambda: 0)  # as if nothing fitted in the cache
    monkeypatch.setattr("kvbench.timing.clock_for", lambda device: HastyClock())
    with pytest.raises(WorkLeftRunning):  # the first guard: time that passed after the last mark
        time_decode(made, made.job.workload.runs()[0])
    monkeypatch.setattr("kvbench.measure.paired.assert_quiet", lambda blocks, arm: None)
    with pytest.raises(CeilingBeaten):  # the second: bytes cannot be read that fast
        time_decode(made, made.job.workload.runs()[0])
