"""A run of requests, from overrides to files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import kvbench
from kvbench import bench
from kvbench.configuration import check, compose
from kvbench.engines import serving
from kvbench.measure import memory
from kvbench.runner import Result, job_of
from kvbench.serve import weigh_requests
from tests.runner.test_runner import SHORT, row

SMALL = [
    *SHORT,
    "workload.num_requests=8",
    "workload.tree=[[2,40]]",
    "workload.own_tokens=9",
    "workload.new_tokens=4",
]


def run(folder: Path, *overrides: str) -> Result:
    """Run quickly into a folder."""
    return kvbench.run([*SMALL, f"runs={folder}", *overrides])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """One finished run, whose requests come one after the other."""
    rate = ["workload.arrival=poisson", "workload.rate_per_s=40"]
    return run(tmp_path_factory.mktemp("runs"), "strategy=scheduling_prefix", *rate)


def test_both_arms_serve_the_same_requests(done: Result) -> None:
    mine, full = row(done), row(done, "baseline")
    assert (mine["status"], mine["comparison"], full["engine"]) == ("ok", "paired", "batcher")
    assert mine["same_share"] == 1
    assert mine["sharing"] == full["sharing"] > 2
    prompts = kvbench.load(done.folder, requests=True).query("arm == 'baseline' and round == 0")["prompt_tokens"].sum()
    assert (full["prefill_tokens_computed"], full["prefill_tokens_reused"]) == (prompts, 0)
    assert mine["prefill_tokens_computed"] == round(prompts / mine["sharing"])
    assert mine["prefill_tokens_computed"] + mine["prefill_tokens_reused"] == prompts


def test_bytes_are_those_of_the_pool(done: Result) -> None:
    for mine in (row(done), row(done, "baseline")):
        assert mine["kv_allocated_bytes"] == mine["kv_predicted_bytes"]
        assert 0 < mine["kv_used_bytes"] < mine["kv_allocated_bytes"] <= mine["peak_bytes"]
        assert 0 < mine["page_utilisation"] <= 1


def test_weights_have_been_read_before_memory_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def noting(name: str, of: Callable[..., object]) -> Callable[..., object]:
        def noted(*given: object) -> object:
            done.append(name)
            return of(*given)

        return noted

    for owner, name in ((serving.Serving, "run"), (memory.MemoryMeter, "held_bytes")):
        monkeypatch.setattr(owner, name, noting(name, getattr(owner, name)))
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    try:
        weigh_requests(job_of(check(compose([*SMALL, "strategy=scheduling_fcfs"]))), "strategy", lambda *said: None)
    finally:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(grad)
    assert done == ["run", "held_bytes", "run", "held_bytes"]


def test_columns_can_be_recomputed_from_the_requests(done: Result) -> None:
    served = kvbench.load(done.folder, requests=True)
    assert set(served["number"]) == set(range(8))
    assert (served.groupby(["arm", "round"]).size() == 8).all()
    served["arm"] = served["arm"].str.removesuffix("_again")
    assert (served["arrival_s"].sub(served["admitted_s"]) <= 0).all()
    assert (served["admitted_s"] < served["first_token_s"]).all()
    assert (served["first_token_s"] <= served["last_token_s"]).all()
    for name in ("strategy", "baseline"):
        mine, told = served[served["arm"] == name], row(done, name)
        first = 1e3 * (mine["first_token_s"] - mine["arrival_s"])
        assert told["ttft_ms"] == pytest.approx(first.median())
        assert told["e2e_p99_ms"] == pytest.approx((1e3 * (mine["last_token_s"] - mine["arrival_s"])).quantile(0.99))
        spans = mine.groupby(["round", "block"])["last_token_s"].max()
        assert told["serve_s"] == pytest.approx(spans.median())
        assert told["tokens_per_s"] == pytest.approx(mine["new_tokens"].sum() / spans.sum())


def test_targets_say_what_is_in_time(tmp_path: Path) -> None:
    late = run(tmp_path, "strategy=scheduling_fcfs", "workload.ttft_target_ms=0.000001")
    assert row(late)["goodput_per_s"] == 0
    assert row(late)["tokens_per_s"] > 0


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["strategy/layout=separate"], "use strategy/layout=paged"),
        (["strategy/budget=uniform"], "use strategy/budget=all"),
        (["model=tiny-rwkv"], "choose a model= whose layers keep every entry"),
    ],
)
def test_what_cannot_share_is_unsupported(tmp_path: Path, overrides: list[str], reason: str) -> None:
    mine = row(run(tmp_path, "strategy=scheduling_lpm", *overrides))
    assert mine["status"] == "unsupported"
    assert reason in mine["reason"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["engine.kv_tokens=40"], r"engine\.kv_tokens=40 is 2 whole pages of 16; raise it"),
        (["workload.own_tokens=4000"], r"lower workload\.tree, workload\.own_tokens or workload\.turns"),
    ],
)
def test_what_never_fits_is_refused_before_it_loads(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, "strategy=scheduling_lpm", *overrides)
    assert not list(tmp_path.rglob("run.parquet"))


def test_a_pool_that_does_not_fit_names_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(check(compose(["strategy=scheduling_lpm", "model.device=cpu", "engine.kv_tokens=100000"])))
    monkeypatch.setattr(bench, "available_ram_bytes", lambda: 300 * 2**20)
    with pytest.raises(MemoryError, match=r"lower engine\.kv_tokens or workload\.num_requests, or set model\.dtype"):
        bench.check_memory(job)
    monkeypatch.setattr(bench, "available_ram_bytes", lambda: 3000 * 2**20)
    bench.check_memory(job)


def test_less_memory_takes_pages_away_and_changes_no_token(tmp_path: Path) -> None:
    mine = row(run(tmp_path, "strategy=prefix_cache", "engine.kv_tokens=96", "strategy/codec=int8"))
    assert mine["status"] == "ok"
    assert mine["kv_allocated_bytes"] == mine["kv_predicted_bytes"]
    assert mine["saving"] == "packed"
