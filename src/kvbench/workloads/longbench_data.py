"""What LongBench publishes: how its tasks are asked, and their rows.

Source: longbench.json names it. Rows are JSON lines in a folder, in a file, or in the archive that is published.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from kvbench.workloads.rows import lines_of

CLASSIFICATION = "classification_first_line"
_KEYS = ("input", "context", "answers", "all_classes", "dataset")
_PARAGRAPH = re.compile("^(?:Paragraph |\u6bb5\u843d)([0-9]+)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Task:
    """How a task is asked and scored.

    Args:
        prompt: what is said, with {context} and, where rows have one, {input} for the question.
        new_tokens: most tokens of an answer.
        until: texts that end an answer.
        metric: name of the score.
        chat: whether it is written as a chat for models that have a template.
    """

    prompt: str
    new_tokens: int
    until: tuple[str, ...]
    metric: str
    chat: bool


def _published() -> dict[str, Task]:
    found = json.loads(Path(__file__).with_name("longbench.json").read_text(encoding="utf-8"))["tasks"]
    return {name: Task(**{**task, "until": tuple(task["until"])}) for name, task in found.items()}


TASKS: Final[Mapping[str, Task]] = _published()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a task.

    Args:
        task: name of the task.
        context: text that is read.
        question: text that asks about it; "" where the task is the same for all rows.
        answers: all that are right.
        classes: all answers there are, of a task of classes.
    """

    task: str
    context: str
    question: str
    answers: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def num_paragraphs(self) -> int:
        """Paragraphs of the context that have a number, as those of passage_retrieval and passage_count."""
        return len(set(_PARAGRAPH.findall(self.context)))


def read(path: Path, tasks: Sequence[str], samples: int) -> list[Row]:
    """Return rows of tasks, in their order and spread evenly over the rows that each has.

    Args:
        path: folder of <task>.jsonl, one such file, an archive of them, or a file of another name, whose rows say their
            task themselves.
        tasks: names.
        samples: most rows of each.

    Raises:
        ValueError: that names file, line and key of what is not as it is published.
    """
    chosen: list[Row] = []
    for name, only, text in _texts(path, tasks):
        rows = list(_rows(name, text, only))
        for task in tasks:
            found = [row for row in rows if row.task == task]
            count = min(samples, len(found))
            chosen += (found[len(found) * number // count] for number in range(count))
    return sorted(chosen, key=lambda row: tasks.index(row.task))


def _texts(path: Path, tasks: Sequence[str]) -> Iterator[tuple[str, str, bytes]]:
    """Yield files that may hold rows of the tasks: how they are called, whose rows they hold ("" for any), bytes."""
    if path.is_dir():
        files = {task: path / f"{task}.jsonl" for task in tasks}
        yield from ((str(file), task, file.read_bytes()) for task, file in files.items() if file.is_file())
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = {PurePosixPath(member).name: member for member in archive.namelist()}
            named = {task: members[f"{task}.jsonl"] for task in tasks if f"{task}.jsonl" in members}
            yield from ((f"{path}/{member}", task, archive.read(member)) for task, member in named.items())
    else:
        yield str(path), path.stem if path.stem in TASKS else "", path.read_bytes()


def _rows(name: str, text: bytes, only: str) -> Iterator[Row]:
    for place, line in lines_of(name, text):
        try:
            yield _row(line, only)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error


def _row(line: str, only: str) -> Row:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"must be a JSON object with {', '.join(_KEYS)}; got {line[:80]!r}.")
    for key in _KEYS:
        if key not in found:
            raise ValueError(f"lacks {key!r}, of {', '.join(_KEYS)}.")
    for key in ("input", "context"):
        if not isinstance(found[key], str):
            raise ValueError(f"{key!r} must be text; got {_shown(found[key])}.")
    task = only or found["dataset"]
    if task not in list(TASKS):
        raise ValueError(f"'dataset' must be one of {', '.join(TASKS)}; got {_shown(task)}.")
    has_classes = TASKS[task].metric == CLASSIFICATION
    return Row(
        task=task,
        context=found["context"],
        question=found["input"],
        answers=_several(found, "answers", least=1),
        classes=_several(found, "all_classes", least=2) if has_classes else (),
    )


def _several(found: dict[str, Any], key: str, *, least: int) -> tuple[str, ...]:
    """Return a list of texts, or of numbers as texts."""
    value = found[key]
    if not isinstance(value, list) or len(value) < least or {type(each) for each in value} - {str, int}:
        raise ValueError(f"{key!r} must be a list of {least} or more texts; got {_shown(value)}.")
    return tuple(map(str, value))


def _shown(value: object) -> str:
    return json.dumps(value)[:80]
