"""Token ids of which it is known which positions a head that retrieves would look at."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from kvbench.workloads.recall import RecallTasks
from kvbench.workloads.source import TokenSource

PAIRS = 8  # key-value pairs hidden in a sample
ROOM = 32  # tokens for a question and its answer
REPEATS = 4  # times that random tokens are repeated

Marks = Callable[[Tensor, Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Marked:
    """One sample.

    Args:
        ids: token ids [T].
        start: first query that counts.
        stop: one past the last.
        marks: from positions of queries [t, 1] and of entries [n], which entries count, by name of the score [t, n].
    """

    ids: tuple[int, ...]
    start: int
    stop: int
    marks: Marks


def needles(source: TokenSource, count: int, tokens: int) -> list[Marked]:
    """Return recall samples; what counts is what the queries that answer pay to the needle.

    Without a tokenizer random tokens come twice, and the needle is where a token came before and what followed it.

    Args:
        source: of tasks, of random ids, and their seed.
        count: how many.
        tokens: of each, at most.
    """
    rng = random.Random(f"needles-{source.seed}")
    tasks = source.tasks
    if tasks is None:
        blocks = [_random(rng, source.vocabulary, tokens // 2) for _ in range(count)]
        return [_repeated(block, 2, _either(len(block))) for block in blocks]
    return [_needle(tasks, rng, tokens - ROOM, is_pair=index % 2 == 0) for index in range(count)]


def repetitions(source: TokenSource, count: int, tokens: int) -> list[Marked]:
    """Return random tokens, repeated; echoes are the same token before, inductions what followed it.

    Args:
        source: of random ids and their seed.
        count: how many.
        tokens: of each, at most.
    """
    rng = random.Random(f"repetitions-{source.seed}")
    blocks = [_random(rng, source.vocabulary, tokens // REPEATS) for _ in range(count)]
    return [_repeated(block, REPEATS, _echo_and_induction(len(block))) for block in blocks]


def _needle(tasks: RecallTasks, rng: random.Random, context: int, *, is_pair: bool) -> Marked:
    if is_pair:
        sample = tasks.key_value(rng, context_tokens=context, pairs=PAIRS)
    else:
        sample = tasks.passkey(rng, context_tokens=context)
    answer = next(span for span in sample.spans if span.kind == "answer")
    wanted = sample.ids[answer.start - 1 : answer.stop]  # the answer, and the token it was asked for by
    first = _where(sample.ids[:context], wanted)
    last = first + len(wanted)

    def marks(query: Tensor, entry: Tensor) -> Mapping[str, Tensor]:
        inside = (entry >= first) & (entry < last)
        return {"retrieval": inside.expand(len(query), -1)}

    return Marked(ids=sample.ids, start=answer.start - 1, stop=answer.stop - 1, marks=marks)


def _where(ids: Sequence[int], wanted: Sequence[int]) -> int:
    """Return where a run of ids begins."""
    return next(at for at in range(len(ids)) if tuple(ids[at : at + len(wanted)]) == tuple(wanted))


def _random(rng: random.Random, vocabulary: int, tokens: int) -> tuple[int, ...]:
    return tuple(rng.randrange(vocabulary) for _ in range(tokens))


def _repeated(block: tuple[int, ...], times: int, marks: Marks) -> Marked:
    return Marked(ids=block * times, start=len(block), stop=len(block) * times, marks=marks)


def _echo_and_induction(period: int) -> Marks:
    def marks(query: Tensor, entry: Tensor) -> Mapping[str, Tensor]:
        back = query - entry
        return {
            "echo": (back > 0) & (back % period == 0),
            "induction": (back > 0) & (back % period == period - 1) & (entry > 0),  # nothing comes before the first
        }

    return marks


def _either(period: int) -> Marks:
    both = _echo_and_induction(period)

    def marks(query: Tensor, entry: Tensor) -> Mapping[str, Tensor]:
        found = both(query, entry)
        return {"retrieval": found["echo"] | found["induction"]}

    return marks
