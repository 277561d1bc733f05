"""RULER's questions about documents (qa_1: SQuAD, qa_2: HotpotQA), of the hub, or of files in the published forms.

Source: PUBLISHED["source"], qa.py, download_qa_dataset.sh.
Deviates: questions are drawn, not the first of the file; each has as many documents as fit it, none of them twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

from kvbench.workloads.asked import Conversation
from kvbench.workloads.composing import found
from kvbench.workloads.ruler.desk import PUBLISHED, Desk


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a task's questions are.

    Args:
        key: setting that names a file.
        name: of the file that its authors published, which the hub's holds too.
        hub: data set, revision and file.
    """

    key: str
    name: str
    hub: tuple[str, str, str]


SOURCES = {
    "qa_1": Source(
        key="squad",
        name="SQuAD 2.0's dev-v2.0.json",
        hub=(
            "rajpurkar/squad_v2",
            "3ffb306f725f7d2ce8394bc1873b24868140c412",
            "squad_v2/validation-00000-of-00001.parquet",
        ),
    ),
    "qa_2": Source(
        key="hotpotqa",
        name="HotpotQA's hotpot_dev_distractor_v1.json",
        hub=(
            "hotpotqa/hotpot_qa",
            "1908d6afbbead072334abe2965f91bd2709910ab",
            "distractor/validation-00000-of-00001.parquet",
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question.

    Args:
        question: its text.
        answers: that are right.
        needed: documents that it comes with.
        near: documents that go with it before others do.
    """

    question: str
    answers: tuple[str, ...]
    needed: tuple[str, ...]
    near: tuple[str, ...]


@lru_cache(maxsize=2)
def read(task: str, path: str) -> tuple[tuple[Question, ...], tuple[str, ...]]:
    """Return the questions and all documents of a file: of the published form, or the hub's (.parquet).

    Raises:
        ValueError: that says which file it has to be.
    """
    import pyarrow.parquet as pq

    source = SOURCES[task]
    must = f"workload.{source.key}={path} must be {source.name} or the hub's {source.hub[2]}, which {task} asks about"
    try:
        if Path(path).suffix == ".parquet":
            said = pq.read_table(path).to_pylist()
        else:
            said = json.loads(Path(path).read_text(encoding="utf-8"))
        asked = tuple(_squad(said) if task == "qa_1" else _hotpotqa(said))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{must}: {error!r}.") from error
    if not asked:
        raise ValueError(f"{must}: it has no questions.")
    texts = {text for one in asked for text in (*one.needed, *one.near)}
    return asked, tuple(sorted(texts))


def _squad(said: Any) -> list[Question]:
    if isinstance(said, Mapping):
        rows = [
            (article, paragraph["context"], one["question"], [answer["text"] for answer in one["answers"]])
            for article, about in enumerate(said["data"])
            for paragraph in about["paragraphs"]
            for one in paragraph["qas"]
        ]
    else:
        rows = [(row["title"], row["context"], row["question"], row["answers"]["text"]) for row in said]
    texts: dict[object, dict[str, None]] = {}
    for article, text, _, _ in rows:
        texts.setdefault(article, {})[text] = None
    return [
        Question(
            question=question,
            answers=tuple(answers),
            needed=(mine,),
            near=tuple(text for text in texts[article] if text != mine),
        )
        for article, mine, question, answers in rows
        if answers  # the others are questions that the paragraph does not answer
    ]


def _hotpotqa(said: list[Mapping[str, Any]]) -> list[Question]:
    return [
        Question(
            question=str(one["question"]),
            answers=(str(one["answer"]),),
            needed=tuple(f"{title}\n{''.join(sentences)}" for title, sentences in _titled(one["context"])),
            near=(),
        )
        for one in said
    ]


def _titled(context: Any) -> Iterable[tuple[str, list[str]]]:
    return zip(context["title"], context["sentences"], strict=True) if isinstance(context, Mapping) else context


def documents(desk: Desk, path: str) -> Conversation:
    """Return a sample: a question about one or more of the documents before it."""
    asked, texts = read(desk.task, path)
    one = desk.rng.choice(asked)
    prompt = desk.prompt("documents", "\n\n", query=one.question)
    near = desk.rng.sample(one.near, len(one.near))
    rest = [text for text in desk.rng.sample(texts, len(texts)) if text not in {*one.needed, *near}]
    chosen: list[str] = []
    left = prompt.room
    for number, text in zip(count(1), (*one.needed, *near, *rest)):
        left -= len(desk.ids(heading(number))) + len(desk.ids(text))
        if left < 0:
            break
        chosen.append(text)
    if len(chosen) < len(one.needed):
        raise desk.short(f"the {len(one.needed)} documents of a question")
    desk.rng.shuffle(chosen)
    parts = [part for number, text in enumerate(chosen, 1) for part in (heading(number), text)]
    body = [token for part in parts for token in desk.ids(part)]
    depth = found(body, desk.ids(one.needed[0])) if len(one.needed) == 1 else None
    return desk.conversation(prompt, body, one.answers, told=(), depth=depth)


def heading(number: int) -> str:
    """Return what stands before a document."""
    return "\n\n" + str(PUBLISHED["document"]).format(number=number)
