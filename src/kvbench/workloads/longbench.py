"""Tasks over long texts, in English, Chinese and code: LongBench, asked and scored as published.

Source: Bai et al., arXiv:2308.14508; LongBench/pred.py and eval.py at github.com/THUDM/LongBench, commit 2e00731, whose
prompts and lengths of answers are in longbench.json.
Deviates: context and question are made tokens apart, so that what is compressed does not know the question; a token
    that would hold some of both becomes two, and a tokenizer that begins texts with a blank begins both so.
    Prompts that are too long lose their middle as tokens, a chat template's counted, and never any of the question;
    published prompts lose it before they are written as a chat. For a template, every day is the same, and models
    that can think first are told not to. An answer of samsum that begins with a line's end is empty; the published
    script forbids the model to begin so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kvbench.workloads.asked import Asked, Conversation, Turn
from kvbench.workloads.chats import Chat, as_chat, ids_of, plain_ids, writes_chats
from kvbench.workloads.composing import tokenizer_of
from kvbench.workloads.hub import hub_file
from kvbench.workloads.longbench_data import TASKS, Row, read
from kvbench.workloads.source import TokenSource

DATASET, REVISION, FILE = "zai-org/LongBench", "5e628be450b7e67fb7ae6e201bd6d8f7056f7672", "data.zip"
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class LongBench(Asked):
    """Questions about texts, summaries of them, examples to follow and code to go on with.

    Args:
        tasks: names, or "all" for every task that `path` has.
        path: folder of <task>.jsonl, one such file, or the archive of them; "" for the hub's.
        chat: "auto" writes prompts as chats where the tokenizer has a template and the task is published so; "never"
            leaves them as they are.
    """

    tasks: tuple[str, ...]
    path: str
    chat: Chat

    def __post_init__(self) -> None:
        """Refuse tasks and paths that are not there."""
        super().__post_init__()
        unknown = [task for task in self.tasks if task not in TASKS and self.tasks != (ALL,)]
        if unknown or not self.tasks:
            raise ValueError(
                f"workload.tasks must be [{ALL}] or some of {', '.join(TASKS)}; got {', '.join(unknown) or 'none'}."
            )
        if self.path and not Path(self.path).exists():
            raise ValueError(f"workload.path={self.path} is neither a folder nor a file.")

    def bring(self) -> None:
        """Bring the archive, or say that it is missing."""
        self._place()

    def conversations(self, source: TokenSource) -> list[Conversation]:
        """Return a conversation of one question for each row, task by task; the same for every seed.

        Raises:
            ValueError: if there is no tokenizer, no row of a task, or no room for a question.
        """
        tokenizer_of(source, "longbench")
        path = self._place()
        rows = read(path, [task for task in TASKS if self.tasks == (ALL,) or task in self.tasks], self.samples)
        missing = set() if self.tasks == (ALL,) else {*self.tasks} - {row.task for row in rows}
        if missing or not rows:
            raise ValueError(
                f"workload.path={path} has no row of {', '.join(sorted(missing)) or 'any task'}. It must be a "
                f"folder of <task>.jsonl, one such file, or the published {FILE}; workload.tasks says which are asked."
            )
        return [self._conversation(source, row) for row in rows]

    def _place(self) -> Path:
        return Path(self.path) if self.path else hub_file(DATASET, REVISION, FILE)

    def _conversation(self, source: TokenSource, row: Row) -> Conversation:
        """Return what a row asks."""
        task = TASKS[row.task]
        is_chat = task.chat and writes_chats(source.tokenizer, self.chat)
        before, after = self._prompt(row)
        if is_chat:
            before, after = as_chat(source.tokenizer, before, [after])
        context = ids_of(source.tokenizer, source.prefix, before)
        question = plain_ids(source.tokenizer, after)
        turn = Turn(question=question, references=row.answers, new_tokens=task.new_tokens, until=task.until)
        return Conversation(
            task=row.task,
            context=self._shortened(context, question, row.task),
            turns=(turn,),
            metric=task.metric,
            classes=row.classes,
            chance=_chance(row),
            is_chat=is_chat,
        )

    def _prompt(self, row: Row) -> tuple[str, str]:
        """Return the text up to the end of the context, and what follows."""
        before, _, after = TASKS[row.task].prompt.partition("{context}")
        return before + row.context, after.replace("{input}", row.question)

    def _shortened(self, context: tuple[int, ...], question: Sequence[int], task: str) -> tuple[int, ...]:
        """Return a context of which the middle of the prompt is left out, so that it is no longer than asked for."""
        room = self.prompt_tokens - len(question)
        if len(context) <= room:
            return context
        if room < 1:
            raise ValueError(
                f"workload.prompt_tokens must be more than the {len(question)} tokens of a question of {task}; got "
                f"{self.prompt_tokens}."
            )
        first = min(self.prompt_tokens // 2, room)
        return (*context[:first], *context[len(context) - room + first :])


def _chance(row: Row) -> float:
    """Return the score of whoever guesses a class, or the number of a paragraph."""
    guesses = len(row.classes) or (row.num_paragraphs if TASKS[row.task].metric == "numbers" else 0)
    return 1 / guesses if guesses else 0.0
