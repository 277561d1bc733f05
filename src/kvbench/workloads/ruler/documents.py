"""RULER's questions about documents (qa_1: SQuAD, qa_2: HotpotQA), read from files of the published forms.

Source: PUBLISHED["source"], qa.py, download_qa_dataset.sh.
Deviates: questions are drawn, not the first of the file; each has as many documents as fit it, none of them twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

from kvbench.workloads.asked import Conversation
from kvbench.workloads.composing import found
from kvbench.workloads.ruler.desk import PUBLISHED, Desk

FILES = {
    "qa_1": ("squad", "SQuAD 2.0's dev-v2.0.json"),
    "qa_2": ("hotpotqa", "HotpotQA's hotpot_dev_distractor_v1.json"),
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
    """Return the questions and all documents of a file.

    Raises:
        ValueError: that says which file it has to be.
    """
    key, name = FILES[task]
    try:
        said = json.loads(Path(path).read_text(encoding="utf-8"))
        asked = tuple(_squad(said) if task == "qa_1" else _hotpotqa(said))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"workload.{key}={path} must be {name}, which {task} asks about: {error!r}.") from error
    if not asked:
        raise ValueError(f"workload.{key}={path} must be {name}, which {task} asks about: it has no questions.")
    texts = {text for one in asked for text in (*one.needed, *one.near)}
    return asked, tuple(sorted(texts))


def _squad(said: Mapping[str, Any]) -> list[Question]:
    asked = []
    for article in said["data"]:
        texts = list(dict.fromkeys(str(paragraph["context"]) for paragraph in article["paragraphs"]))
        for paragraph in article["paragraphs"]:
            mine = str(paragraph["context"])
            asked += [
                Question(
                    question=str(one["question"]),
                    answers=tuple(str(answer["text"]) for answer in one["answers"]),
                    needed=(mine,),
                    near=tuple(text for text in texts if text != mine),
                )
                for one in paragraph["qas"]
                if not one["is_impossible"]
            ]
    return asked


def _hotpotqa(said: list[Mapping[str, Any]]) -> list[Question]:
    return [
        Question(
            question=str(one["question"]),
            answers=(str(one["answer"]),),
            needed=tuple(f"{title}\n{''.join(sentences)}" for title, sentences in one["context"]),
            near=(),
        )
        for one in said
    ]


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
