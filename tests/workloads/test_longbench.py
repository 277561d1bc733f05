"""LongBench is asked as it is published, and each check of that fails on questions that are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvbench.workloads.asked import TIMED_TOKENS
from kvbench.workloads.longbench import DATASET, FILE, REVISION, LongBench
from kvbench.workloads.source import TokenSource
from tests.mutants import longbench as mutants
from tests.mutants.core_mutant import Check, Mutant, each_of, oracles_in, seen_to_fail
from tests.support import longbench as support
from tests.support.longbench import SETTINGS, TEMPLATE, asked, rows, source

ORACLES = sorted(oracles_in(support), key=lambda oracle: oracle.__name__)


@pytest.mark.parametrize("oracle", ORACLES, ids=lambda oracle: oracle.__name__)
def test_longbench_is_asked_as_published(oracle: Check) -> None:
    oracle()


@each_of(mutants.MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert set(ORACLES) - seen_to_fail(mutants.MUTANTS) == set()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tasks": ()}, r"workload\.tasks must be \[all\] or some of narrativeqa, .*; got none\."),
        ({"tasks": ("qasper", "qaspr")}, r"workload\.tasks must be \[all\] or some of .*; got qaspr\."),
        ({"tasks": ("all", "qasper")}, r"workload\.tasks must be .*; got all\."),
        ({"path": "/no/such"}, r"workload\.path=/no/such is neither a folder nor a file"),
        ({"samples": 0}, r"workload\.samples must be at least 1; got 0"),
        ({"reference": 1.5}, r"workload\.reference must be auto, none or a score from 0 to 1; got 1\.5"),
    ],
)
def test_settings_that_cannot_be_name_the_key(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LongBench(**SETTINGS | changed)


def line(**changed: Any) -> str:
    """Return a row of qasper with some keys changed; without those that are changed to an ellipsis."""
    row = rows()["qasper"] | changed
    return json.dumps({key: value for key, value in row.items() if value is not ...})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "qasper",
            '{"input": ',
            r"qasper\.jsonl, line 1: must be a JSON object with input, context, answers, all_.*got",
        ),
        ("qasper", "[]", r"line 1: must be a JSON object with input"),
        ("qasper", line() + "\n\n" + line(context=...), r"line 3: lacks 'context', of input, context, answers, all_"),
        ("qasper", line(dataset=...), r"line 1: lacks 'dataset'"),
        ("qasper", line(context=["a"]), r"line 1: 'context' must be text; got \[\"a\"\]"),
        ("qasper", line(input=None), r"line 1: 'input' must be text; got null"),
        ("qasper", line(answers=[]), r"line 1: 'answers' must be a list of 1 or more texts; got \[\]"),
        ("qasper", line(answers="a"), r"line 1: 'answers' must be a list of 1 or more texts; got \"a\""),
        ("qasper", line(answers=[["a"]]), r"line 1: 'answers' must be a list of 1 or more texts"),
        ("trec", line(all_classes=None), r"line 1: 'all_classes' must be a list of 2 or more texts; got null"),
        ("rows", line(dataset="riddle"), r"line 1: 'dataset' must be one of narrativeqa, .*; got \"riddle\""),
        ("rows", line(dataset=["qasper"]), r"line 1: 'dataset' must be one of"),
        ("rows", "", r"rows\.jsonl has no row of any task\. It must be a folder of <task>\.jsonl, one such file, or"),
    ],
)
def test_rows_that_are_not_as_published_name_file_line_and_key(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / f"{name}.jsonl"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"workload\.path=.*" + message):
        asked(path=str(file))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lcc.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"workload\.path=.*lcc\.jsonl is not UTF-8 text"):
        asked(path=str(tmp_path))


def test_a_task_without_rows_is_named(tmp_path: Path) -> None:
    (tmp_path / "qasper.jsonl").write_text(line(), encoding="utf-8")
    with pytest.raises(ValueError, match=r"workload\.path=.* has no row of lcc\. .*workload\.tasks says which"):
        asked(path=str(tmp_path), tasks=("lcc", "qasper"))


def test_a_question_that_leaves_no_room_names_the_key() -> None:
    with pytest.raises(ValueError, match=r"workload\.prompt_tokens must be more than the \d+ tokens of a question of"):
        asked(prompt_tokens=3)


def test_a_template_that_repeats_or_drops_the_message_names_the_key() -> None:
    for template in (TEMPLATE * 2, "{{ bos_token }}"):
        with pytest.raises(ValueError, match=r"does not write every message once; set workload\.chat=never"):
            asked(template)


def test_nobody_guesses_a_paragraph_that_has_no_number(tmp_path: Path) -> None:
    row = rows()["passage_count"] | {"context": "One paragraph, in which Paragraph 1 is spoken of."}
    (tmp_path / "passage_count.jsonl").write_text(json.dumps(row), encoding="utf-8")
    assert asked(path=str(tmp_path))["passage_count"].chance == 0


def test_longbench_needs_a_tokenizer() -> None:
    bare = TokenSource(prefix=(), text=(), vocabulary=9, seed=0, name="", tasks=None)
    with pytest.raises(ValueError, match="workload=longbench needs a tokenizer"):
        LongBench(**SETTINGS).conversations(bare)


def test_without_a_path_it_is_the_hubs_archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found: list[tuple[str, ...]] = []

    def brought(*named: str) -> Path:
        found.append(named)
        return Path(SETTINGS["path"])

    monkeypatch.setattr("kvbench.workloads.longbench.hub_file", brought)
    assert asked(path="") == asked()
    assert found == [(DATASET, REVISION, FILE)]


def test_prompts_that_are_timed_are_as_long_as_asked_for() -> None:
    made = LongBench(**SETTINGS | {"prompt_tokens": 100, "batch_size": 2, "tasks": ("lcc", "hotpotqa")})
    (run,) = made.runs()
    assert run.prompt_lengths == (100, 100)
    assert [len(row) for row in made.ids(source(), run)] == [100 + TIMED_TOKENS] * 2
