"""The harness' tasks are asked and scored as they say, and what would not read the cache is refused."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import kvbench
from kvbench.workloads import harness
from kvbench.workloads.asked import Conversation, Turn
from kvbench.workloads.lm_eval import LmEval
from kvbench.workloads.metrics import contains_any
from kvbench.workloads.source import TokenSource
from tests.mutants import harness as mutants
from tests.mutants.core_mutant import Check, Mutant, each_of, oracles_in, seen_to_fail
from tests.runner.test_runner import SHORT
from tests.support import harness as support
from tests.support.harness import SETTINGS, Filter, Request, Weather, asked, source, standing_in

ORACLES = sorted(oracles_in(support), key=lambda oracle: oracle.__name__)


@pytest.mark.parametrize("oracle", ORACLES, ids=lambda oracle: oracle.__name__)
def test_tasks_are_asked_and_scored_as_they_say(oracle: Check) -> None:
    oracle()


@each_of(mutants.MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert set(ORACLES) - seen_to_fail(mutants.MUTANTS) == set()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tasks": ()}, r"workload\.tasks must name a task of the harness, such as gsm8k; got none"),
        ({"num_fewshot": -2}, r"workload\.num_fewshot must be -1, for what a task says, or more; got -2"),
        ({"path": "/no/such"}, r"workload\.path=/no/such is no folder; it must be one of task yamls"),
        ({"new_tokens": 0}, r"workload\.new_tokens must be at least 1; got 0"),
        ({"samples": 0}, r"workload\.samples must be at least 1; got 0"),
        ({"reference": 1.5}, r"workload\.reference must be auto, none or a score from 0 to 1"),
    ],
)
def test_settings_that_cannot_be_name_the_key(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LmEval(**SETTINGS | changed)


class Strange(Weather):
    """A task of which one thing differs.

    Args:
        of_each: changes each request.
        config: as of any.
    """

    def __init__(self, of_each: dict[str, Any], **config: Any) -> None:
        super().__init__(**config)
        self.OUTPUT_TYPE = None  # its requests say it one by one
        self.of_each = of_each

    def build_all_requests(self, **settings: Any) -> None:
        super().build_all_requests(**settings)
        self.instances = [Request(**vars(each) | self.of_each) for each in self.instances]


def unsafe() -> Weather:
    task = Weather()
    task.UNSAFE_CODE = True  # type: ignore[attr-defined]
    return task


def unscored() -> Weather:
    task = Weather()
    task.aggregation = dict  # type: ignore[method-assign]
    return task


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        (Weather(output_type="multiple_choice"), {}, r"weather compares likelihoods \(output_type: multiple_choice\)"),
        (Weather(output_type="loglikelihood_rolling"), {}, r"reads no cache: .*Set workload\.tasks to tasks that gene"),
        (
            Strange({"request_type": "loglikelihood"}),
            {},
            r"weather compares likelihoods \(output_type: loglikelihood\)",
        ),
        (unsafe(), {}, r"weather runs code that a model has written.*leave it out of workload\.tasks"),
        (Strange({"doc_id": 0}), {}, r"weather asks several requests of one document"),
        (Strange({"args": ("a", {}, {"visual": []})}), {}, r"weather asks about more than a text"),
        (Strange({"args": (["a", "b"], {})}), {}, r"weather asks about more than a text"),
        (Weather({"do_sample": True}), {}, r"weather generates with do_sample=True, but answers here are greedy"),
        (
            Weather({"do_sample": True, "temperature": 0.8}),
            {},
            r"with do_sample=True, but .*set workload\.path=<the copy",
        ),
        (Weather({"temperature": 0.2}), {}, r"generates with temperature=0\.2, but"),
        (Weather({"num_beams": 4, "min_p": 1}), {}, r"generates with min_p=1, num_beams=4, but"),
        (Weather(num_fewshot=0), {"num_fewshot": 2}, r"to be asked without examples; set workload\.num_fewshot=-1"),
        (Weather(), {"metric": "taste"}, r"workload\.metric=taste: weather has same, begins, said, wrong, percent"),
        (unscored(), {}, r"workload\.metric='': weather has same, begins"),
        (Weather(), {"metric": "same,strict"}, r"workload\.metric=same,strict: weather has no filter strict; it has w"),
        (
            Weather(),
            {"metric": "bleu"},
            r"bleu of weather is of all answers together, .*Set workload\.metric to another",
        ),
        (Weather(), {"metric": "scaled"}, r"scaled of weather is of all answers together"),
        (Weather(), {"metric": "wrong"}, r"wrong of weather is better the lower it is"),
        (Weather(), {"metric": "percent"}, r"percent of weather is 100\.0 for an answer, and scores are from 0 to 1"),
        (
            Weather(),
            {"prompt_tokens": 3},
            r"document 0 of weather has a prompt of \d+ tokens; workload\.prompt_tokens=3",
        ),
    ],
)
def test_tasks_that_cannot_be_asked_or_scored_are_refused(
    task: Weather, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        asked(task, **settings)


def test_a_score_that_is_no_number_is_refused_when_it_comes() -> None:
    task = Weather()
    (one, *_) = asked(task, metric="begins,whole")
    task._filters[1] = Filter("whole", lambda answers: answers[0] * 2)
    task.process_results = lambda doc, results: {"begins": float("nan")}  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"begins of weather is nan for an answer"):
        one.score_of("warm", one.turns[0])


def test_random_weights_are_asked_nothing() -> None:
    nobody = TokenSource(prefix=(), text=(), vocabulary=9, seed=0, name="random ids", tasks=None)
    with standing_in(weather=Weather()), pytest.raises(ValueError, match="workload=lm_eval needs a tokenizer"):
        LmEval(**SETTINGS).conversations(nobody)


def test_a_conversation_is_scored_by_name_or_by_what_it_brings() -> None:
    turn = Turn(question=(1,), references=("warm",), new_tokens=4)
    named, own = (
        Conversation(task="a", context=(0,), turns=(turn,), metric=metric) for metric in ("contains_any", contains_any)
    )
    assert [one.score_of(said, turn) for one in (named, own) for said in ("so warm", "cold")] == [1, 0, 1, 0]
    with pytest.raises(ValueError, match="a is scored by 'taste'; metrics are"):
        Conversation(task="a", context=(0,), turns=(turn,), metric="taste")


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (None, "lm-eval is not installed: pip install 'lm-eval>=0.4.13,<0.5', or kvbench with its extra [lm_eval]"),
        ("0.4.9.2", "lm-eval 0.4.9.2 is older than 0.4.13: pip install"),
        ("0.4.13", None),
        ("0.5.0", None),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_command(
    version: str | None, said: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def installed(name: str) -> str:
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr("kvbench.workloads.harness.metadata.version", installed)
    found = LmEval(**SETTINGS).unavailable()
    assert (found or "").startswith(said or "")
    assert (found is None) == (said is None)
    if found is not None:
        with pytest.raises(ValueError, match="workload=lm_eval needs a package: lm-eval "):
            LmEval(**SETTINGS).conversations(source())


def test_a_run_without_the_package_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(harness, "missing", lambda: "it is not here: install it")
    line = ["quality=none", "workload=lm_eval", "workload.prompt_tokens=64", "strategy=h2o", f"runs={tmp_path}"]
    done = kvbench.run([*SHORT, *line])
    (row,) = done.rows.to_dict("records")
    assert (row["status"], row["reason"]) == ("unavailable", "it is not here: install it")
    assert row["query_aware"]
