"""RULER's needles in the notation that the embedded models were trained on: "@ key value", asked for as "? key".

A number is one word, its key another. Where several keys are asked for, each has a turn of its own. Tasks whose needles
are UUIDs, whose keys have several values, or which ask for more than a needle have no such form.
"""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import cycle, islice

from kvbench.workloads.asked import Conversation, Turn
from kvbench.workloads.composing import found
from kvbench.workloads.recall import RecallTasks
from kvbench.workloads.ruler.desk import PUBLISHED, Desk

MARKED = ("niah_single_1", "niah_single_2", "niah_multikey_1", "niah_multikey_2", "niah_multiquery")


def marked(desk: Desk, tasks: RecallTasks) -> Conversation:
    """Return a sample of a task that has such a form."""
    kind = PUBLISHED["needles"][desk.task]
    questions = kind["num_asked"]
    room = desk.tokens - questions * (len(tasks.question_mark) + 2)
    if kind["haystack"] == "needles":
        context, asked = pairs_alone(desk, tasks, room)
    else:
        sample = hidden_in(desk, tasks, kind["haystack"]).key_value(
            desk.rng, context_tokens=room, pairs=kind["num_keys"], questions=questions
        )
        parts = sample.pieces
        context, asked = parts[0], list(zip(parts[1::2], parts[2::2], strict=True))
    turns = tuple(
        Turn(question=question, references=(desk.tokenizer.decode(list(answer)),), new_tokens=1)
        for question, answer in asked
    )
    lead = (*tasks.pair_mark, asked[0][0][-1])
    depth = found(context, lead) / len(context) if questions == 1 else None
    return Conversation(
        task=desk.task, context=context, turns=turns, metric="exact", depth=depth, chance=1 / len(tasks.values)
    )


def hidden_in(desk: Desk, tasks: RecallTasks, haystack: str) -> RecallTasks:
    """Return the tasks with what they hide pairs in: text, or sentences that repeat."""
    if haystack == "text":
        return replace(tasks, filler=desk.haystack.ids)
    return replace(tasks, filler=tuple(islice(cycle(desk.ids(f"\n{PUBLISHED['noise']}")), desk.tokens)))


def pairs_alone(
    desk: Desk, tasks: RecallTasks, room: int
) -> tuple[tuple[int, ...], list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """Return a context of nothing but pairs, as many as fit, and what is asked of it."""
    count = min((room - len(tasks.prefix)) // (len(tasks.pair_mark) + 2), len(tasks.keys))
    if count < 2:
        raise desk.short("two pairs")
    keys = desk.rng.sample(tasks.keys, count)
    values = desk.rng.choices(tasks.values, k=count)
    pairs = [(*tasks.pair_mark, key, value) for key, value in zip(keys, values, strict=True)]
    at = random.Random(desk.rng.random()).randrange(count)
    context = (*tasks.prefix, *(token for pair in pairs for token in pair))
    return context, [((*tasks.question_mark, keys[at]), (values[at],))]
