"""Recall tasks with exact answers, written in text that any tokenizer can read.

Two tasks are hidden in filler text: key-value pairs ("@ key value", asked for as "? key") and a pass key
of five distinct digits. Keys and values are words that are one token each, so an answer is right or wrong.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from kvbench.types import Sample, Span
from kvbench.workloads.asked import Asked, Conversation, Turn
from kvbench.workloads.composing import found, tokenizer_of, woven
from kvbench.workloads.source import TokenSource, no_tokenizer, positive

_WORD = re.compile(r"^[\u0120\u2581][a-z]{3,}$")  # how byte-level BPE and SentencePiece write " word"
_NUM_WORDS = 512  # keys, and as many values


class Tokenizer(Protocol):
    """What is used of a tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]:
        """Return token ids."""

    def get_vocab(self) -> dict[str, int]:
        """Return token string -> id."""


@dataclass(frozen=True, kw_only=True)
class RecallTasks:
    """Generator of recall samples for one tokenizer and one filler text.

    Args:
        prefix: ids the tokenizer puts before every text (begin-of-text, or nothing).
        filler: token ids to hide things in.
        keys: one-token words that serve as keys.
        values: one-token words that serve as values; disjoint from keys.
        pair_mark: ids before a pair.
        question_mark: ids before an asked key.
        passkey_lead: ids of the sentence up to the digits.
        passkey_tail: ids of the sentence after the digits.
        digits: per digit its token ids, as they stand after the lead.
    """

    prefix: tuple[int, ...]
    filler: tuple[int, ...]
    keys: tuple[int, ...]
    values: tuple[int, ...]
    pair_mark: tuple[int, ...]
    question_mark: tuple[int, ...]
    passkey_lead: tuple[int, ...]
    passkey_tail: tuple[int, ...]
    digits: tuple[tuple[int, ...], ...]

    @staticmethod
    def build(tokenizer: Tokenizer, filler: Sequence[int]) -> RecallTasks:
        """Choose the words and marks for a tokenizer.

        Raises:
            ValueError: if the vocabulary has too few one-token words.
        """

        def ids(text: str) -> tuple[int, ...]:
            return tuple(tokenizer.encode(text, add_special_tokens=False))

        words = sorted(token_id for token, token_id in tokenizer.get_vocab().items() if _WORD.match(token))
        words = words[: 2 * _NUM_WORDS]
        if len(words) < 128:
            raise ValueError(
                f"workload=recall needs a tokenizer with at least 128 one-token words of three or more lower-case "
                f"letters; this one has {len(words)}. Choose another workload, or quality.recall_samples=0."
            )
        return RecallTasks(
            prefix=tuple(tokenizer.encode("", add_special_tokens=True)),
            filler=tuple(filler),
            keys=tuple(words[0::2]),
            values=tuple(words[1::2]),
            pair_mark=ids("\n@"),
            question_mark=ids("\n?"),
            passkey_lead=ids("\nThe pass key is"),
            passkey_tail=ids(".\n"),
            digits=tuple(ids(f" {digit}") for digit in range(10)),
        )

    def key_value(self, rng: random.Random, *, context_tokens: int, pairs: int, questions: int = 1) -> Sample:
        """Hide key-value pairs in filler and ask for some of them.

        Args:
            rng: source of every choice.
            context_tokens: exact length before the first question, prefix included.
            pairs: pairs hidden, each key once.
            questions: questions asked one after the other, each followed by its answer.
        """
        keys = rng.sample(self.keys, pairs)
        values = [rng.choice(self.values) for _ in keys]
        needles = [(*self.pair_mark, key, value) for key, value in zip(keys, values, strict=True)]
        asked = rng.sample(range(pairs), questions)
        return _assemble(
            self._hide(rng, needles, context_tokens, "pairs"),
            [((*self.question_mark, keys[i]), (values[i],)) for i in asked],
        )

    def passkey(self, rng: random.Random, *, context_tokens: int) -> Sample:
        """Hide one pass key of five distinct digits in filler and ask for it.

        Args:
            rng: source of every choice.
            context_tokens: exact length before the question, prefix included.
        """
        answer = tuple(token for digit in rng.sample(range(10), 5) for token in self.digits[digit])
        needle = (*self.passkey_lead, *answer, *self.passkey_tail)
        return _assemble(self._hide(rng, [needle], context_tokens, "the pass key"), [(self.passkey_lead, answer)])

    def _hide(
        self, rng: random.Random, needles: Sequence[tuple[int, ...]], context_tokens: int, what: str
    ) -> tuple[int, ...]:
        num_filler = context_tokens - len(self.prefix) - sum(map(len, needles))
        if num_filler < 1 or num_filler > len(self.filler):
            raise ValueError(
                f"{context_tokens} context tokens cannot hold {what}: {num_filler} of them would be filler, of which "
                f"there are {len(self.filler)}. Change workload.prompt_tokens or workload.pairs."
            )
        start = rng.randrange(len(self.filler) - num_filler + 1)
        gaps = sorted(rng.randrange(num_filler + 1) for _ in needles)
        return (*self.prefix, *woven(self.filler[start : start + num_filler], needles, gaps))


def _assemble(context: tuple[int, ...], asked: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> Sample:
    ids = list(context)
    spans = [Span(kind="context", start=0, stop=len(ids))]
    for question, answer in asked:
        spans.append(Span(kind="question", start=len(ids), stop=len(ids) + len(question)))
        ids += question
        spans.append(Span(kind="answer", start=len(ids), stop=len(ids) + len(answer)))
        ids += answer
    return Sample(ids=tuple(ids), spans=tuple(spans))


@dataclass(frozen=True, kw_only=True)
class Recall(Asked):
    """Contexts that hide something, the question about it, and the exact answer.

    Args:
        task: "key_value" hides pairs, "passkey" five digits.
        pairs: pairs hidden per context.
    """

    task: Literal["key_value", "passkey"]
    pairs: int

    def __post_init__(self) -> None:
        """Refuse numbers and tasks that mean nothing."""
        super().__post_init__()
        positive("workload", pairs=self.pairs)
        if self.task not in ("key_value", "passkey"):
            raise ValueError(f"workload.task must be key_value or passkey; got {self.task!r}.")

    def conversations(self, source: TokenSource) -> list[Conversation]:
        """Return a conversation of one question for each sample."""
        tasks, tokenizer = needed(source), tokenizer_of(source, "recall")
        is_pairs = self.task == "key_value"
        chance = 1 / len(tasks.values) if is_pairs else 1 / math.perm(10, 5)

        def asked(sample: Sample) -> Conversation:
            context, question, answer = sample.pieces
            lead = (*tasks.pair_mark, question[-1]) if is_pairs else tasks.passkey_lead
            turn = Turn(question=question, references=(tokenizer.decode(list(answer)),), new_tokens=len(answer))
            depth = found(context, lead) / len(context)
            return Conversation(
                task=self.task, context=context, turns=(turn,), metric="exact", depth=depth, chance=chance
            )

        drawn = draw(
            tasks, self.task, self.samples, self.prompt_tokens, self.pairs, source.seed, self.question_in_cache
        )
        return [asked(sample) for sample in drawn]


def draw(
    tasks: RecallTasks, task: str, count: int, prompt_tokens: int, pairs: int, seed: int, question_in_cache: bool
) -> list[Sample]:
    """Return recall samples.

    Args:
        tasks: the generator.
        task: "key_value" or "passkey".
        count: how many.
        prompt_tokens: tokens of the part that is compressed.
        pairs: pairs hidden per context (key_value).
        seed: same seed, same samples.
        question_in_cache: whether the question counts to `prompt_tokens`.
    """
    rng = random.Random(f"{task}-{seed}")
    question = len(tasks.question_mark) + 1 if task == "key_value" else len(tasks.passkey_lead)
    context = prompt_tokens - (question if question_in_cache else 0)
    if task == "key_value":
        return [tasks.key_value(rng, context_tokens=context, pairs=pairs) for _ in range(count)]
    return [tasks.passkey(rng, context_tokens=context) for _ in range(count)]


def needed(source: TokenSource) -> RecallTasks:
    """Return the recall tasks of a source.

    Raises:
        ValueError: if its model has no tokenizer, or one that has too few words.
    """
    if source.tasks is not None:
        return source.tasks
    if source.tokenizer is not None:
        return RecallTasks.build(source.tokenizer, source.text)
    raise no_tokenizer("recall")
