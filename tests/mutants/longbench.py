"""LongBench that is asked wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvbench.workloads import chats, longbench, longbench_data
from kvbench.workloads.asked import Conversation
from kvbench.workloads.longbench import LongBench
from kvbench.workloads.longbench_data import TASKS, Row
from kvbench.workloads.source import TokenSource
from tests.mutants.core_mutant import Mutant
from tests.support import longbench as support

REAL_PROMPT, REAL_CONVERSATION = LongBench._prompt, LongBench._conversation
REAL_ROW, REAL_CHAT = longbench_data._row, chats.as_chat
SPLIT = support.context_and_question_are_the_prompt_cut_at_the_end_of_the_context
CUT, CHAT = (
    support.a_prompt_that_is_too_long_is_its_first_half_and_its_last,
    support.chats_are_what_the_template_makes_of_the_whole_prompt,
)
PUBLISHED, ANSWERS = (
    support.prompts_and_lengths_are_the_published_ones,
    support.answers_have_the_scores_worked_out_by_hand,
)
BEFORE, EVENLY = support.a_template_without_the_token_before_every_text_gets_it, support.rows_are_taken_evenly
PLACES, LINES = support.a_folder_a_file_and_an_archive_say_the_same, support.lines_end_where_json_lines_do


def changed(**settings: Any) -> tuple[tuple[object, str, object], ...]:
    """Return what puts other tasks in place of the published ones."""
    tasks = {name: replace(task, **settings) for name, task in TASKS.items()}
    return ((longbench, "TASKS", tasks), (longbench_data, "TASKS", tasks))


def asking_in_the_context(self: LongBench, row: Row) -> tuple[str, str]:
    """Compress all but the last character of the prompt."""
    whole = "".join(REAL_PROMPT(self, row))
    return whole[:-1], whole[-1]


def without_what_comes_before(self: LongBench, row: Row) -> tuple[str, str]:
    """Begin with the context."""
    return row.context, REAL_PROMPT(self, row)[1]


def from_the_end(self: LongBench, context: tuple[int, ...], question: Sequence[int], task: str) -> tuple[int, ...]:
    """Leave out what comes first."""
    return context[-(self.prompt_tokens - len(question)) :]


def from_the_start(self: LongBench, context: tuple[int, ...], question: Sequence[int], task: str) -> tuple[int, ...]:
    """Leave out what comes last."""
    return context[: self.prompt_tokens - len(question)]


def of_the_context(self: LongBench, context: tuple[int, ...], question: Sequence[int], task: str) -> tuple[int, ...]:
    """Halve the context, not the prompt."""
    room = self.prompt_tokens - len(question)
    first = room // 2
    return context if len(context) <= room else (*context[:first], *context[len(context) - room + first :])


def as_it_is_written(self: LongBench, source: TokenSource, row: Row) -> Conversation:
    """Put nothing before a text."""
    return REAL_CONVERSATION(self, replace(source, prefix=()), row)


def begun_twice(self: LongBench, source: TokenSource, row: Row) -> Conversation:
    """Put before every text what a template has written already."""
    found = REAL_CONVERSATION(self, source, row)
    return replace(found, context=(*source.prefix, *found.context))


def as_special(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Begin a question as a text of its own."""
    return tuple(tokenizer(text).input_ids)


def thinking(tokenizer: Any, context: str, questions: Sequence[str]) -> list[str]:
    """Let models think first."""
    before, after = REAL_CHAT(tokenizer, context, questions)
    return [before, after + "<think>"]


def without_an_answer_to_come(tokenizer: Any, context: str, questions: Sequence[str]) -> list[str]:
    """End with the question."""
    before, after = REAL_CHAT(tokenizer, context, questions)
    return [before, after.replace("<|assistant|>\n", "")]


def the_first(path: Path, tasks: Sequence[str], samples: int) -> list[Row]:
    """Take the first rows."""
    rows = [
        row for name, only, text in longbench_data._texts(path, tasks) for row in longbench_data._rows(name, text, only)
    ]
    return rows[:samples]


def as_the_rows_say(line: str, only: str) -> Row:
    """Forget how the file is called."""
    return REAL_ROW(line, "")


def at_every_end(name: str, text: bytes, only: str) -> list[Row]:
    """Split at whatever ends a line."""
    return [REAL_ROW(line, only) for line in text.decode().splitlines() if line]


def guessing(row: Row) -> float:
    """Guess one of two."""
    return 0.5


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="the question is compressed",
        patches=((LongBench, "_prompt", asking_in_the_context),),
        killed_by=(SPLIT, CHAT),
    ),
    Mutant(
        name="the prompt has no head",
        patches=((LongBench, "_prompt", without_what_comes_before),),
        killed_by=(SPLIT, CHAT),
    ),
    Mutant(
        name="prompts are other ones", patches=changed(prompt="Read: {context}\n{input}"), killed_by=(PUBLISHED, SPLIT)
    ),
    Mutant(name="answers are short", patches=changed(new_tokens=8), killed_by=(PUBLISHED, SPLIT)),
    Mutant(name="every answer is a line", patches=changed(until=("\n",)), killed_by=(SPLIT,)),
    Mutant(name="one score for all", patches=changed(metric="qa_f1"), killed_by=(ANSWERS,)),
    Mutant(name="chance is a coin", patches=((longbench, "_chance", guessing),), killed_by=(ANSWERS,)),
    Mutant(name="the end alone is kept", patches=((LongBench, "_shortened", from_the_end),), killed_by=(CUT,)),
    Mutant(name="the start alone is kept", patches=((LongBench, "_shortened", from_the_start),), killed_by=(CUT,)),
    Mutant(
        name="halves are those of the context", patches=((LongBench, "_shortened", of_the_context),), killed_by=(CUT,)
    ),
    Mutant(name="questions begin a text", patches=((longbench, "plain_ids", as_special),), killed_by=(SPLIT, CHAT)),
    Mutant(name="every task is a chat", patches=changed(chat=True), killed_by=(CHAT,)),
    Mutant(name="no task is a chat", patches=changed(chat=False), killed_by=(CHAT,)),
    Mutant(name="a model thinks first", patches=((longbench, "as_chat", thinking),), killed_by=(CHAT,)),
    Mutant(
        name="nobody is asked to answer",
        patches=((longbench, "as_chat", without_an_answer_to_come),),
        killed_by=(CHAT,),
    ),
    Mutant(
        name="what a template leaves out is left out",
        patches=((LongBench, "_conversation", as_it_is_written),),
        killed_by=(BEFORE, SPLIT),
    ),
    Mutant(name="a text begins twice", patches=((LongBench, "_conversation", begun_twice),), killed_by=(CHAT, SPLIT)),
    Mutant(
        name="a template asks for the time",
        patches=((chats, "_DAY", ""),),
        killed_by=(support.chats_are_the_same_on_every_day,),
    ),
    Mutant(name="the first rows are taken", patches=((longbench, "read", the_first),), killed_by=(EVENLY,)),
    Mutant(
        name="rows say their task",
        patches=((longbench_data, "_row", as_the_rows_say),),
        killed_by=(PLACES,),
        error=ValueError,
    ),
    Mutant(
        name="texts end lines", patches=((longbench_data, "_rows", at_every_end),), killed_by=(LINES,), error=ValueError
    ),
)
