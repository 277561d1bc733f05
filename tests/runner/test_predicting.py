"""What is predicted of steps that were measured: by hand from their rows, and nothing where a rate is missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kvbench.bench import Bench
from kvbench.configuration import check, compose
from kvbench.folders import CACHE
from kvbench.job import Row
from kvbench.measure.environment import accelerator
from kvbench.measure.rates import Capability
from kvbench.measure.roofline import CeilingBeaten
from kvbench.planning.expected import Work
from kvbench.planning.machine import Machine, Rate
from kvbench.predicting import prediction_columns
from kvbench.runner import job_of
from kvbench.sizing import count_launches
from kvbench.timing import time_decode
from tests.mutants import predicting as mutants
from tests.runner.test_honesty import QUICK, SHORT, HastyClock, silent
from tests.support.small import spec

HERE = accelerator("cpu")["device_name"]


def capability(name: str, value: float) -> Capability:
    """Return a rate as a run measures it."""
    facts = {"device": "cpu", "num_threads": 1, "dtype": "float32", "num_bytes": 0, "shape": "", "unit": ""}
    return Capability(name=name, value=value, low=value, high=value, **facts)  # type: ignore[arg-type]


SLOW_MEMORY = [
    capability("read", 1e6),
    capability("host_read", 1e6),
    capability("gemm", 1e15),
    capability("launch", 1e9),
]


def bench(*overrides: str) -> Bench:
    """Return the loaded bench of a quick job on a small random model."""
    return Bench(replace(job_of(check(compose([*QUICK, *SHORT, *overrides]))), spec=spec()), silent)


def timed(made: Bench, monkeypatch: pytest.MonkeyPatch, rates: Sequence[Capability] = SLOW_MEMORY) -> dict[str, Row]:
    """Return the rows after decoding on a machine that is said to have such rates."""
    monkeypatch.setattr("kvbench.timing.step_capabilities", lambda device, threads: rates)
    monkeypatch.setattr("kvbench.timing._check_floors", lambda *arguments: None)  # memory is not as slow as said
    time_decode(made, made.job.workload.runs()[0])
    return made.measured.rows


@pytest.fixture(autouse=True)
def no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Find no machine's record."""
    monkeypatch.setenv(CACHE, str(tmp_path))


def test_fewer_bytes_are_predicted_to_take_less_and_the_baseline_what_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = timed(bench("strategy=h2o"), monkeypatch)
    full, mine = rows["baseline"], rows["strategy"]
    assert (full["prediction"], mine["prediction"]) == ("fitted", "modelled")
    assert full["predicted_ms"] == pytest.approx(full["decode_p50_ms"])
    assert full["measured_over_predicted"] == pytest.approx(1)
    assert mine["bytes_read_per_step"] < full["bytes_read_per_step"]
    share = mine["bytes_read_per_step"] / full["bytes_read_per_step"]
    assert mine["predicted_ms"] == pytest.approx(full["decode_p50_ms"] * share)
    assert mine["measured_over_predicted"] == pytest.approx(mine["decode_p50_ms"] / mine["predicted_ms"])
    assert {full["binding_resource"], mine["binding_resource"]} == {"device_memory"}


@pytest.mark.parametrize("ahead", [0, 1])
def test_what_comes_from_the_host_adds_up_unless_it_is_fetched_ahead(
    ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, works = bench("strategy=offload", f"strategy.placement.prefetch={ahead}"), []

    def noted(work: Work, *others: Any) -> Row:
        works.append(work)
        return prediction_columns(work, *others)

    monkeypatch.setattr("kvbench.timing.prediction_columns", noted)
    rows = timed(made, monkeypatch)
    full, mine = rows["baseline"], rows["strategy"]
    token = sum(layer.kv_heads * (layer.key_dim + layer.value_dim) * 4 for layer in made.loaded.view.layers)
    least_ms, most_ms = (2 * tokens * token / 1e6 * 1e3 for tokens in (64, 64 + 8 + 1))  # the new one goes down
    added_ms = mine["predicted_ms"] - (0 if ahead else full["decode_p50_ms"])
    assert least_ms <= added_ms <= most_ms
    (work,) = (work for work in works if work.layers > 0)
    moved = work.up_bytes if ahead else work.up_bytes + work.down_bytes
    assert added_ms == pytest.approx(2 * moved / 1e6 * 1e3)
    assert mine["binding_resource"] == "host_memory"


def test_a_step_that_reads_everything_again_is_predicted_by_what_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = [capability("read", 1e15), capability("host_read", 1e15), capability("gemm", 1e6), capability("launch", 1e9)]
    rows = timed(bench("strategy=no_cache"), monkeypatch, slow)
    full, mine = rows["baseline"], rows["strategy"]
    assert mine["binding_resource"] == "device_flops"
    assert 32 < mine["predicted_ms"] / full["predicted_ms"] < 65  # times the tokens, of which one has logits


PAGES = ("strategy=tiered", "strategy.budget.amount=16", "strategy.reader.size=4", "strategy.trigger.period=4")


def test_pages_that_come_are_those_of_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench(*PAGES, "strategy.evicted.at_hand=1")
    rows = timed(made, monkeypatch)
    page = sum(layer.kv_heads * (layer.key_dim + layer.value_dim) * 4 * 4 for layer in made.loaded.view.layers)
    most_ms = 2 * (64 // 4 // 4 + 1) * page / 1e6 * 1e3  # all pages of a step missed, and one that goes down
    read_ms = rows["strategy"]["bytes_read_per_step"] / rows["baseline"]["bytes_read_per_step"]
    added_ms = rows["strategy"]["predicted_ms"] - rows["baseline"]["decode_p50_ms"] * read_ms
    assert 0 < added_ms <= most_ms


@pytest.mark.parametrize(
    ("mutant", "oracle"),
    [
        (mutants.of_all_steps, test_pages_that_come_are_those_of_one_step),
        (mutants.of_weights_alone, test_fewer_bytes_are_predicted_to_take_less_and_the_baseline_what_it_took),
        (mutants.always_ahead, partial(test_what_comes_from_the_host_adds_up_unless_it_is_fetched_ahead, 0)),
        (mutants.half_of_what_came, partial(test_what_comes_from_the_host_adds_up_unless_it_is_fetched_ahead, 1)),
    ],
)
def test_the_oracle_fails_on_the_mutant(
    mutant: Callable[..., Work], oracle: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvbench.timing.work_of", mutant)
    with pytest.raises(AssertionError):
        oracle(monkeypatch=monkeypatch)


def record(folder: Path, **facts: object) -> str:
    """Write what `kvbench hardware` would of a disk, and return where."""
    rows = [
        {"name": name, "value": value, "device": "cpu", "device_name": HERE, "num_threads": 1, "shape": "", **facts}
        for name, value in (("disk_read_warm_1M", 1e5), ("disk_write_1M", 1e9))
    ]
    file = folder / "record.json"
    file.write_text(json.dumps(rows))
    return f"strategy.placement.hardware={file}"


def test_a_disk_is_predicted_by_a_record_of_this_machine_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for strange in ({"device_name": "another"}, {"num_threads": 2}):
        rows = timed(bench("strategy=disk", record(tmp_path, **strange)), monkeypatch)
        assert rows["strategy"]["prediction"] == "no_rate"
        assert "predicted_ms" not in rows["strategy"]
        assert rows["baseline"]["prediction"] == "fitted"
    mine = timed(bench("strategy=disk", record(tmp_path)), monkeypatch)["strategy"]
    assert (mine["prediction"], mine["binding_resource"]) == ("modelled", "disk_read_warm")
    cold = timed(bench("strategy=disk", "strategy.placement.cold=true", record(tmp_path)), monkeypatch)["strategy"]
    assert cold["prediction"] == "no_rate"  # the record says nothing of a cold disk


def test_what_is_made_again_is_predicted_by_the_product_of_this_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench("strategy=kvpr", "strategy.placement.prefetch=0", f"strategy.placement.hardware={tmp_path / 'mine'}")
    shape = made.loaded.view.layers[0]
    assert shape.key_projection is not None
    hidden, width = shape.key_projection.weight.shape[2], shape.kv_heads * (shape.key_dim + shape.value_dim)
    facts = {"device": "cpu", "device_name": HERE, "num_threads": 1, "value": 1e6}
    row = {"name": "gemm_recompute", "shape": f"8x{hidden}x{width}", **facts}
    (tmp_path / "mine").write_text(json.dumps([row]))
    fast = [replace(one, value=1e12) for one in SLOW_MEMORY]
    rows = timed(made, monkeypatch, fast)
    mine = rows["strategy"]
    again_ms = 32 * len(made.loaded.view.layers) * 2 * hidden * width / 1e6 * 1e3  # half of the prompt, each layer's
    assert mine["binding_resource"] == "recompute_flops"
    assert mine["predicted_ms"] == pytest.approx(again_ms + rows["baseline"]["decode_p50_ms"], rel=0.05)
    (tmp_path / "mine").write_text(json.dumps([row | {"shape": "8x1x1"}]))
    assert timed(made, monkeypatch, fast)["strategy"]["prediction"] == "no_rate"


def test_a_step_without_a_baseline_is_not_predicted_but_held_against_its_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench("strategy=h2o", "compare=none")
    assert "prediction" not in timed(made, monkeypatch)["strategy"]
    monkeypatch.undo()
    monkeypatch.setattr("kvbench.timing.cache_share_bytes", lambda: 0)
    monkeypatch.setattr("kvbench.timing.clock_for", lambda device: HastyClock())
    monkeypatch.setattr("kvbench.measure.paired.assert_quiet", lambda blocks, arm: None)
    with pytest.raises(CeilingBeaten, match="reading its bytes"):
        time_decode(made, made.job.workload.runs()[0])


def test_a_step_faster_than_the_link_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is right here, so it is the link that is said to be slow: ten seconds for a step's bytes."""
    made = bench("strategy=offload", "measure.cell_seconds=0.1")
    link = Rate(per_s=1e3, latency_s=0.0, source="measured")
    slow = Machine(name="one with a link", is_host=False, rates={"host_to_device": link})
    monkeypatch.setattr("kvbench.timing.machine_of_run", lambda arm, found: slow)
    with pytest.raises(CeilingBeaten, match="what comes over the link takes"):
        time_decode(made, made.job.workload.runs()[0])


def test_launches_are_operations_and_not_views() -> None:
    data = torch.ones(4, 4)
    assert count_launches(lambda: (data @ data).t().reshape(2, 8).add_(1)) == 2 + 1  # of what is turned, a copy
