"""One run from overrides to files: its numbers can be recomputed, and it is never measured twice by accident."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import transformers
from packaging.version import Version

import kvbench
from kvbench import bench
from kvbench.configuration import check, compose
from kvbench.runner import Result, job_of
from kvbench.strategies import black_box

TIMED = ["measure.cell_seconds=1.0", "measure.max_rounds=10"]
SHORT = [
    "measure.cell_seconds=0.2",
    "measure.min_rounds=2",
    "measure.max_rounds=2",
    "measure.quiet_seconds=0",
    "sink.wandb.mode=disabled",
    "model.device=cpu",
]
QUICK = [*SHORT, "workload.prompt_tokens=96", "workload.new_tokens=12"]
SMALL_QUALITY = [
    "quality.text_windows=2",
    "quality.context_tokens=128",
    "quality.scored_tokens=8",
    "quality.recall_samples=8",
    "quality.recall_tokens=128",
    "quality.pairs=4",
    "quality.attention_tokens=96",
]


def run(folder: Path, *overrides: str) -> Result:
    """Run quickly into a folder."""
    return kvbench.run([*QUICK, f"runs={folder}", *overrides])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """One finished run."""
    folder = tmp_path_factory.mktemp("runs")
    return folder, run(folder, "strategy=h2o", *TIMED, *SMALL_QUALITY)


def row(result: Result, arm: str = "strategy") -> pd.Series:
    """Return the row of one arm."""
    return result.rows[result.rows["arm"] == arm].iloc[0]


def test_every_file_is_there(done: tuple[Path, Result]) -> None:
    names = {path.name for path in done[1].folder.iterdir()}
    assert names >= {
        "identity.json",
        "config.yaml",
        "env.json",
        "run.parquet",
        "steps.parquet",
        "run.log",
        "texts.json",
    }
    texts = json.loads((done[1].folder / "texts.json").read_text())
    assert set(texts) == {"prompt", "strategy", "baseline"}


def test_bytes_held_are_the_bytes_predicted_and_fewer_than_the_full_caches(done: tuple[Path, Result]) -> None:
    mine, full = row(done[1]), row(done[1], "baseline")
    assert mine["kv_allocated_bytes"] == mine["kv_predicted_bytes"]
    assert full["kv_allocated_bytes"] == full["kv_predicted_bytes"]
    assert mine["kv_allocated_bytes"] < 0.3 * full["kv_allocated_bytes"]
    assert (mine["entries_held_min"], mine["entries_held_max"]) == (24, 24)


def test_ratio_can_be_recomputed_from_the_steps(done: tuple[Path, Result]) -> None:
    steps = kvbench.load(done[1].folder, steps=True)
    kept = steps[(steps["phase"] == "decode") & (steps["index_in_block"] > 0) & steps["is_clean"]]
    blocks = (
        kept.groupby(["arm", "round"])["wall_ns"]
        .median()
        .unstack("arm")
        .reindex(columns=["strategy", "baseline"])
        .dropna()
    )
    if len(blocks) < 2:  # other processes disturbed all others
        assert pd.isna(row(done[1])["ratio"])
    else:
        again = (blocks["strategy"] / blocks["baseline"]).median()
        assert row(done[1])["ratio"] == pytest.approx(again)


def test_no_prefill_step_is_among_the_decode_steps(done: tuple[Path, Result]) -> None:
    steps = kvbench.load(done[1].folder, steps=True)
    decode = steps[steps["phase"] == "decode"]
    assert set(decode["tokens"]) == {1}
    assert decode["position"].min() == 96
    assert set(steps[steps["phase"] == "prefill"]["tokens"]) == {96}


def test_quality_was_measured_for_both_arms(done: tuple[Path, Result]) -> None:
    mine, full = row(done[1]), row(done[1], "baseline")
    assert mine["guess_nats"] == full["guess_nats"] == math.log(2048) > mine["nll_nats"]
    assert mine["nll_nats"] - full["nll_nats"] == pytest.approx(mine["nll_delta_nats"])
    assert mine["quality_tokens"] == 16
    assert full["recall_key_value"] > 0.5
    assert 0.01 < mine["attention_lost"] < 0.5
    assert pd.isna(full["attention_lost"])


def test_a_finished_run_is_not_repeated_and_force_repeats_it_beside(done: tuple[Path, Result]) -> None:
    folder, first = done
    again = run(folder, "strategy=h2o", *TIMED, *SMALL_QUALITY)
    assert not again.is_new
    assert again.folder == first.folder
    beside = run(folder, "strategy=h2o", *TIMED, *SMALL_QUALITY, "force=true")
    assert beside.is_new
    assert beside.folder != first.folder
    assert (first.folder / "run.parquet").is_file()


def test_random_weights_leave_quality_empty_and_say_so(tmp_path: Path) -> None:
    untimed = ("workload.prompt_tokens=64", "workload.new_tokens=1")
    small = (f"model.architecture.{key}" for key in ("vocab_size=500", "num_hidden_layers=2", "intermediate_size=64"))
    found = row(run(tmp_path, "strategy=h2o", "model=llama8", *small, *untimed, *SMALL_QUALITY))
    assert (found["status"], found["weights"]) == ("ok", "random"), found["reason"]
    assert pd.isna(found["nll_nats"])
    assert pd.isna(found["recall_key_value"])
    assert pd.isna(found["attention_lost"])
    assert found["max_logit_difference"] >= 0


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (RuntimeError("nobody foresaw this"), "error", "RuntimeError: nobody foresaw this"),
        (MemoryError("of the parent"), "out_of_memory", "MemoryError: of the parent"),
    ],
)
def test_what_nobody_foresaw_is_a_row_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, status: str, reason: str
) -> None:
    def stumble(*_: object) -> None:
        raise error

    monkeypatch.setattr("kvbench.runner.measure", stumble)
    monkeypatch.setattr("kvbench.children.start", lambda: None)
    result = run(tmp_path, "strategy=h2o", "quality=none")
    assert row(result)[["status", "reason"]].tolist() == [status, reason]
    assert "Traceback" in (result.folder / "run.log").read_text()


def test_what_the_machine_has_to_mend_is_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no process can be started")

    monkeypatch.setattr("kvbench.runner.measure", full)
    monkeypatch.setattr("kvbench.children.start", lambda: None)
    with pytest.raises(OSError, match="no process can be started"):
        run(tmp_path, "strategy=h2o", "quality=none")
    assert not list(tmp_path.rglob("run.parquet"))


def test_a_budget_below_the_protected_entries_is_an_unsupported_row(tmp_path: Path) -> None:
    found = row(run(tmp_path, "strategy=snapkv", "strategy.budget.amount=0.1", "quality=none"))
    assert found["status"] == "unsupported"
    assert "strategy.budget.amount" in found["reason"]


def test_a_cache_on_the_host_has_to_fit_where_the_host_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "available_ram_bytes", lambda: 30 * 2**20)
    overrides = ["strategy=offload", "workload.prompt_tokens=1024", "workload.batch_size=8", "compare=none"]
    with pytest.raises(MemoryError, match=r"lower workload\.batch_size"):
        bench.check_memory(job_of(check(compose(overrides))))
    monkeypatch.setattr(bench, "available_ram_bytes", lambda: 80 * 2**20)
    bench.check_memory(job_of(check(compose(overrides))))


def test_a_machine_that_was_not_measured_is_a_reason(tmp_path: Path) -> None:
    auto = (
        "strategy=kvpr",
        "strategy.placement.recompute=auto",
        f"strategy.placement.hardware={tmp_path / 'none.json'}",
    )
    found = row(run(tmp_path, *auto, "quality=none"))
    assert found["status"] == "unsupported"
    assert "Run kvbench hardware" in found["reason"]


def test_a_batch_that_cannot_fit_is_an_out_of_memory_row_with_the_numbers(tmp_path: Path) -> None:
    found = row(run(tmp_path, "strategy=baseline", "workload.batch_size=200000", "quality=none"))
    assert found["status"] == "out_of_memory"
    assert "workload.batch_size" in found["reason"]


def test_a_packed_cache_says_what_it_lost_and_what_read_it(tmp_path: Path) -> None:
    text_only = (*SMALL_QUALITY, "quality.recall_samples=0")
    done = row(run(tmp_path, "strategy=kivi4", "strategy.codec.residual=32", *text_only))
    assert done[["status", "saving", "fidelity", "statistic"]].tolist() == [
        "ok",
        "packed",
        "lossy_training_free",
        "mean",
    ]
    assert done["kernel"] in ("native", "triton", "reference")
    assert 5 < done["bits_per_element"] < 20
    assert 0 < done["key_error"] < 0.2
    assert 0 < done["value_error"] < 0.2
    assert 0.1 < done["exact_share"] < 0.3
    assert "every 32 tokens and only 12 were timed; set workload.new_tokens=33 or more" in done["reason"]


def test_transformers_own_generate_is_an_unpaired_row(tmp_path: Path) -> None:
    result = run(tmp_path, "strategy=transformers", "quality=none")
    mine = row(result)
    assert (mine["comparison"], mine["engine"], mine["attention"]) == ("unpaired", "transformers", "sdpa")
    assert pd.isna(mine["ratio"])
    assert mine["tpot_ms"] > 0
    assert mine["equal_tokens"] == 12
    assert pd.isna(mine["divergence_margin"])
    assert row(result, "baseline")["engine"] == "eager"
    assert pd.isna(row(result, "baseline")["equal_tokens"])


@pytest.mark.parametrize("variant", ["static", "continuous"])
def test_a_variant_of_transformers_says_the_same_and_what_it_takes(tmp_path: Path, variant: str) -> None:
    mine = row(run(tmp_path, "strategy=transformers", f"engine.variant={variant}", "quality=none", "model=tiny"))
    assert (mine["status"], mine["engine"], mine["equal_tokens"]) == ("ok", "transformers", 12)
    assert min(mine["ttft_ms"], mine["tpot_ms"], mine["setup_s"], mine["peak_bytes"]) > 0
    token = 2 * 4 * 2 * 32 * 4  # keys and values of 4 layers with 2 heads of 32 numbers
    tokens = 3 * 256 if variant == "continuous" else 96 + 12 - 1  # a page for the row, and two that belong to none
    assert mine["kv_allocated_bytes"] == tokens * token + (0 if variant == "continuous" else 4 * 8)
    assert pd.isna(mine["kv_used_bytes"]) == (variant == "continuous")


def test_transformers_attends_as_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("strategy=transformers", "quality=none", "compare=none")
    mine = row(run(tmp_path, *asked, "engine.attention=eager"))
    assert (mine["status"], mine["attention"]) == ("ok", "eager")
    monkeypatch.setattr("kvbench.engines.stock.find_spec", lambda package: None)
    mine = row(run(tmp_path, *asked, "engine.attention=flash_attention_2"))
    assert mine["status"] == "unavailable"
    assert "use engine.attention=sdpa" in mine["reason"]


def test_a_packed_cache_of_transformers_is_an_unpaired_row_or_says_what_is_missing(tmp_path: Path) -> None:
    mine = row(run(tmp_path, "strategy=hf_fp8", "quality=none", "compare=none"))
    said = (mine["saving"], mine["fidelity"], mine["evidence"], mine["engine"])
    assert said == ("packed", "lossy_training_free", "measured", "transformers")
    if Version(transformers.__version__) < Version("5.23"):
        assert mine["status"] == "unavailable"
    else:
        assert (mine["status"], mine["tpot_ms"] > 0) == ("ok", True)
        numbers = 2 * (96 + 12 - 1) * 32  # heads x tokens x width, of 4 layers' keys and values, with a scale each
        assert mine["kv_allocated_bytes"] == mine["kv_used_bytes"] == 8 * (numbers + 4)


def test_what_is_missing_is_an_unavailable_row_until_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("strategy=hf_hqq", "strategy.group=7", "quality=none", "compare=none")
    monkeypatch.setattr(black_box, "_installed", lambda package: None)
    mine = row(run(tmp_path, *asked))
    assert (mine["status"], mine["reason"]) == ("unavailable", "hqq is not installed: pip install hqq==0.2.8.post1")
    monkeypatch.setattr(black_box, "_installed", lambda package: "0.2.8.post1")
    result = run(tmp_path, *asked)
    assert result.is_new
    assert row(result)["status"] == "unsupported"
    assert "strategy.group=7" in row(result)["reason"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["strategy=transformers", "strategy/codec=kivi2"],
            r"strategy\.codec is not the full cache's.*strategy/codec=",
        ),
        (["strategy=hf_hqq", "strategy.selector.num_sink=4"], r"strategy\.selector is not the full cache's"),
        (
            ["strategy=kivi4", "strategy/trigger=every_chunk"],
            r"read at once\. Set engine\.prefill_chunk=256",
        ),
        (["strategy=hf_fp8", "engine=eager"], r"a cache that engine=transformers alone has\. Leave engine= out"),
        (["strategy=hf_fp8", "engine.variant=static"], r"set engine\.variant=dynamic or strategy=transformers"),
        (
            ["strategy=transformers", "engine.variant=fast"],
            r"engine\.variant cannot be .* Choices: compiled",
        ),
        (["workload.prompt_tokens=3000"], r"model=tiny reads at most 2048 positions; lower workload\.prompt_tokens"),
        (["quality.context_tokens=3000"], r"lower quality\.context_tokens"),
        (
            ["quality.attention_tokens=3000"],
            r"windows of 3000 tokens, but .* quality\.attention_tokens, or set quality",
        ),
        (["measure.threads=4096"], r"Set measure\.threads"),
        (["engine=transformers"], "engine=transformers brings its own cache"),
        (["strategy=transformers", "engine.attention=flash"], r"engine\.attention cannot be .* Choices: eager, flash"),
    ],
)
def test_what_is_too_long_for_the_model_is_refused_before_it_loads(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, "strategy=h2o", *overrides)
    assert not list(tmp_path.rglob("run.parquet"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["workload=requests"],
        ["workload=requests", "strategy=transformers"],
        ["engine=batcher"],
        ["scheduler=lpm"],
        ["strategy=scheduling_lpm", "workload=decode"],
        ["strategy=scheduling_lpm", "scheduler=none"],
    ],
    ids=" ".join,
)
def test_batcher_scheduler_and_requests_go_together(overrides: list[str]) -> None:
    with pytest.raises(ValueError, match=r"engine=batcher, workload=requests and a scheduler= .* Choose all three"):
        job_of(check(compose(overrides)))
