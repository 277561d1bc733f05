"""A run that asks something, from overrides to files; killed in the middle, it goes on from where it was."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import kvbench
from kvbench.cli import main
from kvbench.configuration import check, compose
from kvbench.runner import Names, Result, identify, job_of
from tests.runner.test_runner import SHORT, row

SMALL = [
    *SHORT,
    "quality=none",
    "workload=recall",
    "workload.prompt_tokens=128",
    "workload.pairs=4",
    "workload.samples=24",
    "workload.batch_size=4",
]
EVICTED = ["strategy=snapkv", "strategy.budget.amount=32", "strategy.budget.unit=tokens"]


def run(folder: Path, *overrides: str) -> Result:
    """Run quickly into a folder."""
    return kvbench.run([*SMALL, f"runs={folder}", *overrides])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """One finished run of a strategy that forgets."""
    return run(tmp_path_factory.mktemp("runs"), *EVICTED)


def test_scores_can_be_recomputed_from_the_samples(done: Result) -> None:
    samples = kvbench.load(done.folder, samples=True)
    for _, numbers in samples.groupby("arm")["number"]:
        assert sorted(numbers) == list(range(24))
    right = [
        answer.strip() in map(str.strip, json.loads(told))
        for answer, told in samples[["answer", "references_json"]].to_numpy()
    ]
    assert samples["score"].tolist() == [float(is_right) for is_right in right]
    mean = samples.groupby("arm")["score"].mean()
    for arm in ("baseline", "strategy"):
        assert row(done, arm)["score"] == pytest.approx(mean[arm])
        assert row(done, arm)["asked_samples"] == 24
    mine = row(done)
    assert mine["score_delta"] == pytest.approx(mean["strategy"] - mean["baseline"])
    assert mine["score_delta_low"] < mine["score_delta"] < mine["score_delta_high"] < 0
    assert mine["score_verdict"] == "worse"
    assert (samples["context_tokens"] == 128).all()
    assert not samples["is_chat"].any()


def test_scores_are_shown_task_by_task_and_answers_exported(
    done: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["table", str(done.folder), "--tasks"]) == 0
    (line,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("key_value")]
    assert line[1:] == [f"{100 * row(done, arm)['score']:.1f}" for arm in ("baseline", "strategy")]
    assert main(["export", str(done.folder), str(tmp_path / "answers.csv"), "--samples"]) == 0
    assert len(pd.read_csv(tmp_path / "answers.csv")) == 48


def test_a_cache_that_keeps_everything_answers_to_the_letter_as_the_full_one(tmp_path: Path) -> None:
    kept = ["strategy.budget.amount=160", "strategy.budget.unit=tokens"]
    whole = run(tmp_path, "strategy=h2o", *kept, "workload.samples=20")
    answers = kvbench.load(whole.folder, samples=True).pivot(index="number", columns="arm", values="answer")
    assert (answers["strategy"] == answers["baseline"]).all()
    assert (row(whole)["score_delta"], row(whole)["score_verdict"]) == (0, "no_difference")


@pytest.mark.shipped
def test_whether_the_question_was_known_is_told_and_never_mixed(done: Result, tmp_path: Path) -> None:
    aware = run(tmp_path, *EVICTED, "workload.question_in_cache=true")
    assert (row(aware)["query_aware"], row(done)["query_aware"]) == (True, False)
    assert (kvbench.load(aware.folder, samples=True)["context_tokens"] < 128).all()  # the question takes its part
    assert row(aware)["score"] > row(done)["score"]
    from matplotlib.figure import Figure

    from kvbench.plots import quality_against_memory

    with pytest.raises(ValueError, match="query_aware"):
        quality_against_memory(pd.concat([aware.rows, done.rows]), Figure().subplots(), column="score")


@pytest.mark.shipped
def test_answers_of_several_turns_are_a_row_each(tmp_path: Path) -> None:
    talk = ["workload=multi_turn", "workload.pairs=6", "workload.turns=3", "workload.prompt_tokens=128"]
    small = [one for one in SMALL if not one.startswith("workload")]
    done = kvbench.run([*small, *talk, "workload.samples=6", *EVICTED, f"runs={tmp_path}"])
    samples = kvbench.load(done.folder, samples=True)
    assert samples.groupby(["arm", "number"])["turn"].apply(list).map(lambda turns: turns == [0, 1, 2]).all()
    assert row(done)["score"] == pytest.approx(samples[samples["arm"] == "strategy"]["score"].mean())
    assert row(done)["asked_samples"] == 6


@pytest.mark.shipped
def test_answers_that_are_not_scored_are_told_by_their_length(tmp_path: Path) -> None:
    line = ["workload=long_generation", "workload.samples=6", "workload.prompt_tokens=64", "workload.new_tokens=24"]
    small = [one for one in SMALL if not one.startswith("workload")]
    ends = [
        r"workload.until=['\n']",
        "strategy=sliding_window",
        "strategy.budget.amount=24",
        "strategy.budget.unit=tokens",
    ]
    done = kvbench.run([*small, *line, *ends, f"runs={tmp_path}"])
    samples = kvbench.load(done.folder, samples=True)
    tokens = samples.groupby("arm")["answer_tokens"].sum()
    mine = row(done)
    assert mine["length_ratio"] == pytest.approx(tokens["strategy"] / tokens["baseline"])
    assert mine["ended_share"] == samples[samples["arm"] == "strategy"]["is_ended"].mean() > 0
    answers = samples.pivot(index="number", columns="arm", values="answer")
    assert mine["same_share"] == (answers["strategy"] == answers["baseline"]).mean() < 1
    assert not answers["baseline"].str.contains("\n").any()
    assert pd.isna(mine["score"])


def test_a_text_is_scored_window_by_window(tmp_path: Path) -> None:
    small = [one for one in SMALL if not one.startswith("workload")]
    line = ["workload=perplexity", "workload.prompt_tokens=64", "workload.new_tokens=9", "workload.windows=5"]
    done = kvbench.run([*small, *line, *EVICTED, f"runs={tmp_path}"])
    samples = kvbench.load(done.folder, samples=True).set_index(["arm", "number"])
    mine, full = row(done), row(done, "baseline")
    for name, told in (("strategy", mine), ("baseline", full)):
        assert told["nll_nats"] == pytest.approx(samples.loc[name]["nll_nats"].mean())
        assert told["perplexity"] == pytest.approx(math.exp(told["nll_nats"]))
        assert told["true_rank"] == pytest.approx(samples.loc[name]["true_rank"].mean())
        assert told["quality_tokens"] == 5 * 8
    delta = samples.loc["strategy"]["nll_nats"] - samples.loc["baseline"]["nll_nats"]
    assert mine["nll_delta_nats"] == pytest.approx(delta.mean())
    assert delta.min() <= mine["nll_delta_low"] < mine["nll_delta_nats"] < mine["nll_delta_high"] <= delta.max()
    assert mine["kl_nats"] == pytest.approx(samples.loc["strategy"]["kl_nats"].mean()) != 0


def test_another_text_under_the_same_name_is_another_run(tmp_path: Path) -> None:
    text = tmp_path / "talks.jsonl"
    found = []
    for question in ("Who?", "Where?", "Who?"):
        text.write_text(json.dumps({"turns": [question]}), encoding="utf-8")
        job = job_of(check(compose(["workload=multi_turn", f"workload.path={text}"])))
        names = Names(strategy="baseline", model="tiny", engine="eager", workload="multi_turn", overrides="")
        found.append(identify(compose(["workload=multi_turn"]), job, names)["run_id"])
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize("asks", ["workload=longbench", "workload=perplexity workload.dataset=wikitext2"])
def test_what_the_hub_does_not_give_is_said_before_anything_is_loaded(
    tmp_path: Path, asks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    small = [one for one in SMALL if not one.startswith("workload")]
    with pytest.raises(ValueError, match=r"of the hub's data set .* at revision [0-9a-f]{40} .*workload\.path="):
        kvbench.run([*small, *asks.split(), "workload.prompt_tokens=500", f"runs={tmp_path}"])
    assert not list(tmp_path.iterdir())


def journal_of(folder: Path) -> list[Path]:
    """Return the journals below a folder."""
    return list(folder.rglob(".answers-*.jsonl"))


@pytest.mark.shipped
def test_a_killed_run_goes_on_from_where_it_was(tmp_path: Path) -> None:
    line = [*SMALL, *EVICTED, f"runs={tmp_path}", "workload.samples=48", "workload.batch_size=1"]
    first = subprocess.Popen(
        [sys.executable, "-c", "from kvbench.cli import entry; entry()", "run", *line],
        env={**os.environ, "COLUMNS": "80"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not any(path.read_bytes().count(b"\n") >= 55 for path in journal_of(tmp_path)):  # some of the second arm's
        assert first.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    (journal,) = journal_of(tmp_path)
    known = [row for text in journal.read_text().splitlines() if text.endswith("]") for row in json.loads(text)]
    known[0]["answer"] = "said before"
    known[0]["score"] = 0.5
    journal.write_text("".join(json.dumps([one]) + "\n" for one in known) + '[{"arm": "base')
    again = kvbench.run(line)
    samples = kvbench.load(again.folder, samples=True)
    assert len(samples) == 96
    assert not samples.duplicated(["arm", "number"]).any()
    kept = samples.set_index(["arm", "number"])["answer"].to_dict()
    assert all(kept[one["arm"], one["number"]] == one["answer"] for one in known)
    assert "said before" in set(kept.values())
    assert not journal_of(tmp_path)
