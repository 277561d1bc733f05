"""Conversations and prompts of files and of hidden pairs: what is compressed, what is asked, and in which words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from kvbench.configuration import check, compose
from kvbench.models.spec import TINY
from kvbench.workloads.asked import Asked, Conversation
from kvbench.workloads.chats import as_chat
from kvbench.workloads.recall import RecallTasks
from kvbench.workloads.source import TokenSource, read_text

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer(template: str | None = None) -> Any:
    """Return the embedded model's tokenizer, with a chat template or without."""
    made = AutoTokenizer.from_pretrained(TINY)
    made.chat_template = template
    return made


def source(template: str | None = None, seed: int = 0) -> TokenSource:
    """Return the embedded text for that tokenizer."""
    made = tokenizer(template)
    ids = made(read_text(str(TINY / "held_out.txt")), add_special_tokens=False, verbose=False).input_ids
    return TokenSource(
        prefix=tuple(made("").input_ids),
        text=tuple(ids),
        vocabulary=len(made),
        seed=seed,
        name="held-out text",
        tasks=RecallTasks.build(made, ids),
        tokenizer=made,
    )


def workload(name: str, *overrides: str) -> Asked:
    """Return the workload of a command line."""
    made = check(compose([f"workload={name}", *overrides])).workload
    assert isinstance(made, Asked)
    return made


def written(path: Path, *rows: object) -> str:
    """Write JSON lines and return the override that names them."""
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return f"workload.path={path}"


def texts(one: Conversation, template: str | None = None) -> list[str]:
    """Return the texts of a conversation's context and questions."""
    made = tokenizer(template)
    return [made.decode(list(ids)) for ids in (one.context, *(turn.question for turn in one.turns))]


TALK = {
    "context": "The ship left in May.",
    "turns": [{"question": "When?", "answers": ["May", "in May"]}, {"question": "Who? Ünal?", "answers": []}],
}


def test_a_base_model_reads_a_conversation_as_lines(tmp_path: Path) -> None:
    (one,) = workload("multi_turn", written(tmp_path / "talks.jsonl", TALK)).conversations(source())
    assert texts(one) == ["<s>The ship left in May.", "\nWhen?", "\nWho? Ünal?"]
    assert [turn.references for turn in one.turns] == [("May", "in May"), ()]
    assert one.score_of("It was in may.", one.turns[0]) == 1
    assert one.score_of("anything", one.turns[1]) is None


def test_a_chat_is_written_as_the_template_says_and_cut_where_answers_come(tmp_path: Path) -> None:
    path = written(tmp_path / "talks.jsonl", TALK)
    (one,) = workload("multi_turn", path).conversations(source(TEMPLATE))
    assert texts(one) == [
        "<s><user>The ship left in May.",
        "When?<end><assistant>",
        "<end><user>Who? Ünal?<end><assistant>",
    ]
    (plain,) = workload("multi_turn", path, "workload.chat=never").conversations(source(TEMPLATE))
    assert (one.is_chat, plain.is_chat) == (True, False)
    assert texts(plain)[1] == "\nWhen?"


def test_questions_alone_are_conversations_too(tmp_path: Path) -> None:
    rows = [{"turns": ["Why is it so?", "And then?"], "reference": ["so", "then"]}, {"turns": ["Alone?"]}]
    path = written(tmp_path / "talks.jsonl", *rows, "", rows[0])
    first, second = workload("multi_turn", path, "workload.samples=2").conversations(source(TEMPLATE))
    assert texts(first)[:2] == ["<s><user>", "Why is it so?<end><assistant>"]
    assert [turn.references for turn in first.turns] == [("so",), ("then",)]
    assert second.turns[0].references == ()


def test_hidden_pairs_are_asked_for_one_after_the_other() -> None:
    shape = ["workload.prompt_tokens=200", "workload.pairs=6", "workload.turns=3", "workload.samples=5"]
    made = workload("multi_turn", *shape).conversations(source())
    for one in made:
        context, *questions = texts(one)
        assert len(one.context) == 200
        assert len(set(questions)) == 3
        for question, turn in zip(questions, one.turns, strict=True):
            assert f"\n@{question.removeprefix(chr(10) + '?')}{turn.references[0]}" in context
    assert made == workload("multi_turn", *shape).conversations(source())
    assert made != workload("multi_turn", *shape).conversations(source(seed=1))
    (known, *_) = workload("multi_turn", *shape, "workload.question_in_cache=true").conversations(source())
    assert len(known.context) + len(known.turns[0].question) == 200


def test_prompts_are_read_but_for_their_last_token_which_is_asked(tmp_path: Path) -> None:
    path = written(tmp_path / "prompts.jsonl", {"prompt": "Tell me of ships."}, {"prompt": "And of trains."})
    first, second = workload("long_generation", path).conversations(source(TEMPLATE))
    assert "".join(texts(first)) == "<s><user>Tell me of ships.<end><assistant>"
    assert "".join(texts(second)) == "<s><user>And of trains.<end><assistant>"
    assert len(first.turns[0].question) == 1
    assert first.is_chat
    assert first.score_of("anything", first.turns[0]) is None
    shape = ["workload.prompt_tokens=50", "workload.samples=3", "workload.until=[end]"]
    windows = workload("long_generation", *shape).conversations(source())
    assert [len(one.context) for one in windows] == [49, 49, 49]
    assert windows[0].turns[0].until == ("end",)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("niah", ["workload.lengths=[0.5]", "workload.prompt_tokens=400", "workload.samples=1"]),
        ("passkey", ["workload.lengths=[1.0]", "workload.prompt_tokens=400", "workload.samples=1"]),
        ("ruler", ["workload.tasks=[niah_single_2,niah_multivalue,cwe,fwe]", "workload.samples=2"]),
    ],
)
def test_what_is_hidden_is_asked_for_as_a_chat(name: str, overrides: list[str]) -> None:
    made = workload(name, *overrides)
    chats, plain = made.conversations(source(TEMPLATE)), made.conversations(source())
    assert plain == workload(name, *overrides, "workload.chat=never").conversations(source(TEMPLATE))
    for chat, one in zip(chats, plain, strict=True):
        (context, question), (_, asked) = texts(chat), texts(one)
        assert (chat.is_chat, one.is_chat) == (True, False)
        assert context.startswith("<s><user>")
        assert (context + question).count("<s>") == (context + question).count("<user>") == 1
        before, after = question.split("<end><assistant>")
        assert before + after == asked
        assert (after == "") is (name != "ruler")
        if name == "ruler":
            assert chat.longest <= made.prompt_tokens
            assert chat.longest == one.longest or chat.task not in ("niah_single_2", "niah_multivalue")
        else:
            assert len(chat.context) == len(one.context)


@pytest.mark.parametrize("template", ["<user>", "{{ messages[0].content }}{{ messages[0].content }}"])
def test_a_template_that_drops_or_repeats_messages_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"does not write every message once; set workload\.chat=never"):
        as_chat(tokenizer(template), "context", ["first", "second"])


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("multi_turn", [], r"has no conversation"),
        ("multi_turn", ["{"], r"line 1 is not JSON"),
        ("multi_turn", ["[1]"], r"line 1 must be an object"),
        ("multi_turn", [{"context": "a"}], r'line 1 must have "turns", a list of questions; it has context'),
        ("multi_turn", [{"turns": [{"answers": ["a"]}]}], r'each of "turns" must be a question'),
        ("multi_turn", [{"turns": ["a", "b"], "reference": ["c"]}], r'has 2 turns and a "reference" of 1'),
        ("long_generation", [], r"has no prompt"),
        ("long_generation", [{"text": "a"}], r'line 1 must have "prompt", a text; it has text'),
    ],
)
def test_rows_of_another_form_are_named_before_anything_is_loaded(
    tmp_path: Path, name: str, rows: Sequence[object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        workload(name, written(tmp_path / "rows.jsonl", *rows))


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("multi_turn", ["workload.path=nowhere.jsonl"], r"workload\.path=nowhere\.jsonl is no file"),
        ("multi_turn", ["workload.metric=taste"], r"workload\.metric must be one of .*contains_any.*; got 'taste'"),
        ("multi_turn", ["workload.turns=9", "workload.pairs=8"], r"workload\.turns=9 asks for more than"),
        ("multi_turn", ["workload.turns=0"], r"workload\.turns must be at least 1"),
        ("multi_turn", ["workload.reference=2"], r"workload\.reference must be auto, none or a score from 0 to 1"),
        ("long_generation", ["workload.new_tokens=0"], r"workload\.new_tokens must be at least 1"),
        ("long_generation", ["workload.prompt_tokens=1"], r"workload\.prompt_tokens must be at least 2"),
        ("long_generation", ["workload.question_in_cache=true"], r"workload has no 'question_in_cache'"),
    ],
)
def test_settings_that_mean_nothing_name_their_key(name: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        workload(name, *overrides)


@pytest.mark.parametrize(("name", "row"), [("multi_turn", TALK), ("long_generation", {"prompt": "Tell me of ships."})])
def test_a_text_that_is_too_long_names_its_line(tmp_path: Path, name: str, row: object) -> None:
    path = written(tmp_path / "rows.jsonl", row)
    with pytest.raises(ValueError, match=r"line 1 has a (context|prompt) of \d+ tokens; workload\.prompt_tokens=3"):
        workload(name, path, "workload.prompt_tokens=3").conversations(source())


@pytest.mark.parametrize("name", ["multi_turn", "long_generation"])
def test_random_weights_are_asked_nothing(tmp_path: Path, name: str) -> None:
    nobody = TokenSource(prefix=(), text=(), vocabulary=9, seed=0, name="random ids", tasks=None)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        workload(name).conversations(nobody)
    path = written(tmp_path / "rows.jsonl", {**TALK, "prompt": "Tell me."})
    with pytest.raises(ValueError, match=f"workload={name} needs a tokenizer"):
        workload(name, path).conversations(nobody)
