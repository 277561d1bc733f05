"""What is hidden is found again by a reader of its own, and each such reader fails on samples that are wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.mutants import haystacks as mutants
from tests.mutants.core_mutant import Check, Mutant, each_of, oracles_in, seen_to_fail
from tests.support import haystacks as support
from tests.support import hiding

ORACLES = sorted(oracles_in(support), key=lambda oracle: oracle.__name__)


@pytest.mark.parametrize("oracle", ORACLES, ids=lambda oracle: oracle.__name__)
def test_what_is_hidden_is_found_again(oracle: Check) -> None:
    oracle()


@each_of(mutants.MUTANTS)
def test_the_oracle_fails_on_the_mutant(mutant: Mutant, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.dies(check, monkeypatch)


def test_every_oracle_is_seen_to_fail() -> None:
    assert set(ORACLES) - seen_to_fail(mutants.MUTANTS) == set()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"samples": 0}, r"workload\.samples must be at least 1; got 0"),
        ({"new_tokens": 0}, r"workload\.new_tokens must be at least 1; got 0"),
        ({"reference": 1.5}, r"workload\.reference must be auto, none or a score from 0 to 1; got 1\.5"),
        ({"lengths": ()}, r"workload\.lengths must be rising shares above 0 and up to 1; got \[\]"),
        ({"lengths": (0.0, 1.0)}, r"workload\.lengths must be rising shares"),
        ({"lengths": (0.5, 1.5)}, r"workload\.lengths must be rising shares"),
        ({"lengths": (0.5, 0.5)}, r"workload\.lengths must be rising shares"),
        ({"depths": ()}, r"workload\.depths must be rising shares from 0 to 1; got \[\]"),
        ({"depths": (-0.1, 1.0)}, r"workload\.depths must be rising shares"),
        ({"depths": (0.0, 1.1)}, r"workload\.depths must be rising shares"),
        ({"depths": (float("nan"),)}, r"workload\.depths must be rising shares"),
        ({"needle": "nothing"}, r"workload\.needle must have \{key\} in it; got 'nothing'"),
        ({"question": ""}, r"workload\.question and workload\.task must not be empty"),
        ({"task": ""}, r"workload\.question and workload\.task must not be empty"),
        ({"key": " "}, r"workload\.key must be a text with at most ten #; got ' '"),
        ({"key": "#" * 11}, r"workload\.key must be a text with at most ten #"),
        ({"path": "a", "filler": "b"}, r"workload\.filler is repeated in place of a text; leave it or workload\.path"),
        ({"path": "/no/such"}, r"workload\.path=/no/such is no file"),
    ],
)
def test_grids_that_cannot_be_name_the_key(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hiding.niah(**changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"lengths": (0.01, 1.0)},
            r"of 7 tokens cannot hold 1 before .* raise workload\.prompt_tokens=700 or workload\.l",
        ),
        ({"prompt_tokens": 10**6}, r"a text has \d+ tokens, \d+ are needed; lower workload\.prompt_tokens or set work"),
        ({"key": "self"}, r"a text has 'self' in it already; change workload\.key or workload\.path"),
        ({"key": "grass #", "filler": "grass 0123456789"}, None),
        ({"new_tokens": 9}, r"workload\.new_tokens=9 is too few for an answer of 10 tokens"),
    ],
)
def test_grids_that_do_not_fit_the_text_name_the_key(changed: dict[str, Any], message: str | None) -> None:
    if message is None:
        assert hiding.niah(**changed).conversations(hiding.held())
        return
    with pytest.raises(ValueError, match=message):
        hiding.niah(**changed).conversations(hiding.held())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt_tokens": 0}, r"workload\.prompt_tokens must be at least 1; got 0"),
        ({"wording": "own"}, r"workload\.wording must be one of published, marks; got 'own'"),
        (
            {"tasks": ()},
            r"workload\.tasks must be some of niah_single_1,.* qa_2 with workload\.wording=published, none tw",
        ),
        ({"tasks": ("vt", "vt")}, r"workload\.tasks must be some of .*got \['vt', 'vt'\]"),
        ({"tasks": ("niah",)}, r"workload\.tasks must be some of"),
        (
            {"tasks": ("vt",), "wording": "marks"},
            r"workload\.tasks must be some of niah_single_1, .* workload\.wording=mar",
        ),
        (
            {"squad": "/no/such"},
            r"workload\.squad=/no/such must be SQuAD 2\.0's dev-v2\.0\.json or the hub's .* asks about: FileNotFound",
        ),
        ({"squad": hiding.files()["hotpotqa"]}, r"workload\.squad=.* must be SQuAD 2\.0's .*KeyError"),
        ({"hotpotqa": hiding.files()["squad"]}, r"workload\.hotpotqa=.* must be HotpotQA's .*TypeError"),
        ({"path": "/no/such"}, r"workload\.path=/no/such is no file"),
    ],
)
def test_tasks_that_cannot_be_name_the_key(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hiding.ruler(**changed)


@pytest.mark.parametrize("text", ['{"data": []}', "not JSON", '{"data": [{"paragraphs": [{"qas": []}]}]}'])
def test_files_of_another_form_say_which_is_meant(text: str, tmp_path: Path) -> None:
    file = tmp_path / "squad.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"workload\.squad=.* must be SQuAD 2\.0's dev-v2.* which qa_1 asks about: "):
        hiding.ruler(squad=str(file))


def test_without_files_the_documents_are_those_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    brought = []

    def hub_file(dataset: str, revision: str, file: str, instead: str) -> Path:
        brought.append((dataset, revision, instead))
        return hiding.tables(tmp_path)[dataset]

    monkeypatch.setattr("kvbench.workloads.ruler.workload.hub_file", hub_file)
    asked = hiding.ruler(tasks=("qa_1", "qa_2"), squad="", hotpotqa="")
    asked.bring()
    assert sorted(brought) == [
        ("hotpotqa/hotpot_qa", "1908d6afbbead072334abe2965f91bd2709910ab", "workload.hotpotqa=<the file>"),
        ("rajpurkar/squad_v2", "3ffb306f725f7d2ce8394bc1873b24868140c412", "workload.squad=<the file>"),
    ]
    local = hiding.ruler(tasks=("qa_1", "qa_2"))
    assert asked.conversations(hiding.held("bytes")) == local.conversations(hiding.held("bytes"))


@pytest.mark.parametrize(
    ("task", "tokens", "what"),
    [
        ("niah_single_1", 240, "as many other lines as needles"),
        ("niah_multikey_2", 240, "as many other lines as needles"),
        ("niah_multiquery", 260, "the needles"),
        ("vt", 600, "as many other lines as assignments"),
        ("cwe", 600, "the list"),
        ("fwe", 160, "words of which three are the most frequent ones"),
        ("qa_1", 120, "the 1 documents of a question"),
        ("qa_2", 200, "the 3 documents of a question"),
    ],
)
def test_prompts_that_are_too_short_say_for_what(task: str, tokens: int, what: str) -> None:
    message = rf"workload\.prompt_tokens={tokens} is too short for {what} of {task}; raise it"
    with pytest.raises(ValueError, match=message):
        hiding.asked(task, prompt_tokens=tokens)


def test_marked_prompts_that_are_too_short_name_the_key() -> None:
    with pytest.raises(ValueError, match=r"workload\.prompt_tokens=12 is too short for two pairs of niah_multikey_2"):
        hiding.asked("niah_multikey_2", wording="marks", prompt_tokens=12)
    with pytest.raises(ValueError, match=r"Change workload\.prompt_tokens or workload\.pairs"):
        hiding.asked("niah_multikey_1", wording="marks", prompt_tokens=12)


def test_texts_of_few_words_say_so() -> None:
    few = hiding.source("bytes", running="some words again and again, " * 300)
    with pytest.raises(ValueError, match=r"cwe needs 20 words of a text, which has 3 different ones .*workload\.path"):
        hiding.ruler(tasks=("cwe",), prompt_tokens=4000).conversations(few)


def test_lists_that_take_more_words_than_there_are_say_so() -> None:
    words = " ".join(f"word{letter}{other}" for letter in "abcdef" for other in "abcdef")
    few = hiding.source("bytes", running=words)
    with pytest.raises(ValueError, match=r"cwe needs 37 words of a text, which has 36 different ones"):
        hiding.ruler(tasks=("cwe",), prompt_tokens=4000).conversations(few)


def test_tokenizers_that_cannot_write_an_answer_are_refused() -> None:
    made = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "grass": 2, "\n": 3}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    poor = replace(hiding.held("bytes"), tokenizer=PreTrainedTokenizerFast(tokenizer_object=made), text=(1, 2) * 900)
    with pytest.raises(ValueError, match=r"cannot write '.*' so that it is read again: it has no tokens for it"):
        hiding.niah().conversations(poor)


def test_random_weights_have_no_tokenizer_to_hide_with() -> None:
    none = replace(hiding.held(), tokenizer=None, tasks=None)
    for made, name in ((hiding.niah(), "niah"), (hiding.niah(task="passkey"), "passkey"), (hiding.ruler(), "ruler")):
        with pytest.raises(ValueError, match=rf"workload={name} needs a tokenizer; random weights have none"):
            made.conversations(none)
    with pytest.raises(
        ValueError, match=r"workload\.wording=marks needs a tokenizer with at least 128 one-token words"
    ):
        hiding.ruler(wording="marks", tasks=("niah_single_1",)).conversations(
            replace(none, tokenizer=hiding.tokenizer("bytes"))
        )


def test_the_text_that_is_hidden_in_is_the_one_of_the_path(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("words")
    assert hiding.niah(path=str(file)).text_path == hiding.ruler(path=str(file)).text_path == str(file)
    assert hiding.niah().text_path == hiding.ruler().text_path == ""


def test_a_fixed_needle_is_the_answer() -> None:
    classic = {
        "needle": "\nThe best thing to do in San Francisco is {key}.\n",
        "question": "\nThe best thing to do in San Francisco is",
        "key": "eat a sandwich and sit in Dolores Park on a sunny day",
    }
    made = hiding.niah(**classic, new_tokens=64).conversations(hiding.held())
    assert {one.turns[0].references for one in made} == {(classic["key"],)}
    assert all(hiding.said(one).count("sandwich") == 1 for one in made)


def test_what_is_timed_is_made_of_the_conversations() -> None:
    grid = hiding.niah(batch_size=3)
    rows = grid.ids(hiding.held(), grid.runs()[0])
    assert [len(row) for row in rows] == [732] * 3
    first = grid.conversations(hiding.held())[1].context
    assert tuple(rows[1][: len(first)]) == first
