"""Oracles of LongBench: prompts filled as the published script fills them, cut where it cuts them, scored by hand."""

from __future__ import annotations

import hashlib
import json
import zipfile
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from transformers import AutoTokenizer

from kvbench.models.spec import TINY
from kvbench.workloads import longbench, longbench_data
from kvbench.workloads.asked import Conversation
from kvbench.workloads.longbench import LongBench
from kvbench.workloads.source import TokenSource

ROWS = Path(__file__).parents[1] / "fixtures" / "longbench.jsonl"
PUBLISHED = json.loads((Path(longbench.__file__).with_name("longbench.json")).read_text(encoding="utf-8"))["tasks"]
DIGEST = "af1547bf00b7cb2fc201a455a28d31e2ee70154009255fe43b6cdf2cfa798d7c"  # of the published prompts and lengths
ENOUGH = 100_000
NO_CHAT = {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}
SETTINGS: dict[str, Any] = {
    "tasks": ("all",),
    "path": str(ROWS),
    "chat": "auto",
    "prompt_tokens": ENOUGH,
    "samples": 100,
    "batch_size": 1,
    "question_in_cache": False,
    "reference": "none",
}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>\n{{ message.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% if enable_thinking is not defined %}<think>{% endif %}{% endif %}"
)
ANSWERS = {  # an answer that is partly right, and its score
    "narrativeqa": ("Tom Brook did", 2 * 2 / (3 + 2)),
    "qasper": ("It uses 40 books.", 2 * 2 / (4 + 2)),
    "multifieldqa_en": ("1760", 2 * 1 / (1 + 2)),
    "multifieldqa_zh": ("\u516b\u70b9", 2 * 1 / (1 + 2)),  # of two words
    "hotpotqa": ("In the Blue Hall", 2 * 2 / (3 + 2)),
    "2wikimqa": ("Ost.", 1.0),
    "musique": ("its old bells", 2 * 2 / (3 + 2)),
    "dureader": ("\u661f\u671f\u4e00", 1.0),  # the second reference
    "gov_report": ("four need paint.", 2 * 3 / (3 + 14)),  # three of 14 distinct words
    "qmsum": ("The firm begins.", 2 * 3 / (3 + 6)),
    "multi_news": ("A fox left.", 2 * 3 / (3 + 12)),
    "vcsum": ("\u4e94\u6708\u4fee\u5c4b\u9876", 2 * 3 / (3 + 9)),  # three of nine words
    "trec": ("\nCity or Date\nReason", 1 / 2),
    "triviaqa": ("\nBells and rivers\nPassage:", 2 * 1 / (3 + 1)),
    "samsum": ("Mira has keys.\nDialogue: Mira has the keys", 2 * 3 / (3 + 4)),
    "lsht": ("\u6559\u80b2\u3001\u533b\u836f\u3001\u536b\u751f", 1 / 2),  # two classes
    "passage_count": ("4 of 6", 1 / 2),
    "passage_retrieval_en": ("Paragraph 3, not 30 nor 8", 1 / 3),
    "passage_retrieval_zh": ("\u6bb5\u843d1\u62162", 1 / 2),
    "lcc": ("# add\n        result += prices\n", 0.98),  # 2 * 23 / (24 + 23)
    "repobench-p": ("print(total(price))", 0.97),  # 2 * 19 / (19 + 20)
}
CHANCE = {
    "trec": 1 / 4,
    "lsht": 1 / 3,
    "passage_count": 1 / 6,
    "passage_retrieval_en": 1 / 8,
    "passage_retrieval_zh": 1 / 3,
}


@cache
def tokenizer(template: str = "") -> Any:
    """Return the embedded tokenizer, with a chat template if there is one."""
    made = AutoTokenizer.from_pretrained(TINY)
    if template:
        made.chat_template = template
    return made


def source(template: str = "") -> TokenSource:
    """Return a source of texts whose tokenizer puts one token before each."""
    made = tokenizer(template)
    prefix = tuple(made("").input_ids)
    assert len(prefix) == 1
    return TokenSource(prefix=prefix, text=(), vocabulary=len(made), seed=0, name="", tasks=None, tokenizer=made)


def rows() -> dict[str, dict[str, Any]]:
    """Return the row of each task."""
    found = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    return {row["dataset"]: row for row in found}


def filled(task: str) -> str:
    """Return a prompt as the published script fills it."""
    return str(PUBLISHED[task]["prompt"].format(**rows()[task]))


def asked(template: str = "", **changed: Any) -> dict[str, Conversation]:
    """Return the conversation of each task."""
    found = LongBench(**SETTINGS | changed).conversations(source(template))
    assert len({one.task for one in found}) == len(found)
    return {one.task: one for one in found}


def texts(one: Conversation) -> tuple[str, str]:
    """Return the text of context and question."""
    (turn,) = one.turns
    context, question = (tokenizer().decode(ids) for ids in (one.context, turn.question))
    return str(context), str(question)


def prompts_and_lengths_are_the_published_ones() -> None:
    said = [
        [name, longbench_data.TASKS[name].prompt, longbench_data.TASKS[name].new_tokens] for name in sorted(PUBLISHED)
    ]
    assert hashlib.sha256(json.dumps(said).encode()).hexdigest() == DIGEST
    assert len(said) == 21


def context_and_question_are_the_prompt_cut_at_the_end_of_the_context() -> None:
    found = asked()
    assert set(found) == set(PUBLISHED)
    for task, one in found.items():
        context, question = texts(one)
        assert context + question == "<s>" + filled(task), task
        assert context.endswith(rows()[task]["context"]), task
        assert one.context[0] == source().prefix[0]
        (turn,) = one.turns
        assert turn.new_tokens == PUBLISHED[task]["new_tokens"]
        assert turn.references == tuple(rows()[task]["answers"])
        assert turn.until == (("\n",) if task == "samsum" else ())


def a_prompt_that_is_too_long_is_its_first_half_and_its_last() -> None:
    whole, seen = asked(), set()
    for tokens in (64, 65, 200):
        for task, one in asked(prompt_tokens=tokens, tasks=_shorter_than(tokens)).items():
            question = whole[task].turns[0].question
            prompt = (*whole[task].context, *question)
            got = (*one.context, *one.turns[0].question)
            assert one.turns[0].question == question, "a question stays whole"
            is_long, is_long_question = len(prompt) > tokens, len(question) > tokens - tokens // 2
            seen.add((is_long, is_long_question))
            if not is_long:
                assert got == prompt
            elif not is_long_question:
                assert got == (*prompt[: tokens // 2], *prompt[-(tokens - tokens // 2) :]), task
            else:
                assert got == (*prompt[: tokens - len(question)], *question), task
    assert {(False, False), (True, False), (True, True)} <= seen


def _shorter_than(tokens: int) -> tuple[str, ...]:
    """Return the tasks whose questions leave some context."""
    return tuple(task for task, one in asked().items() if len(one.turns[0].question) < tokens)


def chats_are_what_the_template_makes_of_the_whole_prompt() -> None:
    made = tokenizer(TEMPLATE)
    for task, one in asked(TEMPLATE).items():
        message = [{"role": "user", "content": filled(task)}]
        want = made.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        context, question = texts(one)
        assert context + question == ("<s>" + filled(task) if task in NO_CHAT else want), task
        assert one.is_chat is (task not in NO_CHAT), task
        assert context.endswith(rows()[task]["context"]), task
        assert one.context.count(source().prefix[0]) == 1, "one token stands before a text"
    assert asked(TEMPLATE, chat="never") == asked()


def a_template_without_the_token_before_every_text_gets_it() -> None:
    bare = TEMPLATE.removeprefix("{{ bos_token }}")
    assert {task: one.context for task, one in asked(bare).items()} == {
        task: one.context for task, one in asked(TEMPLATE).items()
    }


def chats_are_the_same_on_every_day() -> None:
    dated = TEMPLATE.replace("<|assistant|>", "{{ strftime_now('%d %b %Y') }}")
    (one,) = asked(dated, tasks=("qasper",)).values()
    assert texts(one)[1].endswith("26 Jul 2024\n")


def answers_have_the_scores_worked_out_by_hand() -> None:
    found = asked()
    assert set(ANSWERS) == set(found)
    for task, (answer, want) in ANSWERS.items():
        one, (turn,) = found[task], found[task].turns
        assert one.score_of(answer, turn) == pytest.approx(want, abs=1e-6), task
        assert one.score_of(rows()[task]["answers"][-1], turn) == pytest.approx(1, abs=1e-6), task
        assert one.score_of("", turn) == 0, task
        assert one.chance == pytest.approx(CHANCE.get(task, 0)), task


def rows_are_taken_evenly() -> None:
    with TemporaryDirectory() as folder:
        row = rows()["qasper"]
        lines = [json.dumps({**row, "input": f"Question {number}?"}) for number in range(10)]
        (Path(folder) / "qasper.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for samples, want in (
            (1, [0]),
            (3, [0, 3, 6]),
            (4, [0, 2, 5, 7]),
            (10, list(range(10))),
            (99, list(range(10))),
        ):
            made = LongBench(**SETTINGS | {"path": folder, "samples": samples}).conversations(source())
            assert [texts(one)[1].partition("Question ")[2].partition("?")[0] for one in made] == [
                str(at) for at in want
            ]


def a_folder_a_file_and_an_archive_say_the_same() -> None:
    wanted = LongBench(**SETTINGS).conversations(source())
    assert [one.task for one in wanted] == list(PUBLISHED)
    with TemporaryDirectory() as name:
        folder = Path(name) / "folder"
        folder.mkdir()
        for task, row in reversed(rows().items()):
            (folder / f"{task}.jsonl").write_text(json.dumps({**row, "dataset": "other"}) + "\n", encoding="utf-8")
        archive = Path(name) / "data.zip"
        with zipfile.ZipFile(archive, "w") as packed:
            for file in folder.iterdir():
                packed.write(file, f"data/{file.name}")
                packed.writestr(f"data/{file.stem}_e.jsonl", "of another set")
        for path in (folder, archive):
            assert LongBench(**SETTINGS | {"path": str(path)}).conversations(source()) == wanted
        one = LongBench(**SETTINGS | {"path": str(folder / "musique.jsonl")}).conversations(source())
        assert one == [each for each in wanted if each.task == "musique"]
        two = LongBench(**SETTINGS | {"path": str(archive), "tasks": ("lcc", "qasper")}).conversations(source())
        assert [each.task for each in two] == ["qasper", "lcc"]


def lines_end_where_json_lines_do() -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "qasper.jsonl"
        row = {**rows()["qasper"], "context": "one\u2028two\u0085three", "answers": [4]}
        file.write_text(json.dumps(row, ensure_ascii=False) + "\n\n", encoding="utf-8")
        (one,) = LongBench(**SETTINGS | {"path": folder}).conversations(source())
        assert texts(one)[0].endswith("one\u2028two\u0085three")
        assert one.turns[0].references == ("4",)
