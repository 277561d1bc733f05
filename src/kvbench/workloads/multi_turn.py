"""Several questions about one context, one after the other: each answer is the model's own and stays in the cache."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kvbench.workloads.asked import Asked, Conversation, Turn
from kvbench.workloads.chats import Chat, as_chat, ids_of, plain_ids, writes_chats
from kvbench.workloads.composing import tokenizer_of
from kvbench.workloads.metrics import METRICS
from kvbench.workloads.recall import needed
from kvbench.workloads.rows import json_rows
from kvbench.workloads.source import TokenSource, positive


@dataclass(frozen=True, kw_only=True)
class MultiTurn(Asked):
    """Conversations: of a file, or about key-value pairs that are hidden in the embedded text.

    A row of a file is {"context": "", "turns": [{"question": "", "answers": [""]}, ...]}, or of MT-Bench's form,
    {"turns": ["", ...], "reference": ["", ...]}; conversations without references are answered and not scored.

    Args:
        path: JSON lines; "" for hidden pairs.
        turns: questions about hidden pairs.
        pairs: hidden in each context.
        new_tokens: most tokens of an answer to a question of a file.
        metric: by which answers to a file's questions are scored.
        chat: "auto" writes a file's conversations as chats where the tokenizer has a template, "never" as lines.
    """

    path: str
    turns: int
    pairs: int
    new_tokens: int
    metric: str
    chat: Chat

    def __post_init__(self) -> None:
        """Refuse numbers, metrics and files that cannot be."""
        super().__post_init__()
        positive("workload", turns=self.turns, pairs=self.pairs, new_tokens=self.new_tokens)
        if self.metric not in METRICS:
            raise ValueError(f"workload.metric must be one of {', '.join(sorted(METRICS))}; got {self.metric!r}.")
        if self.turns > self.pairs:
            raise ValueError(f"workload.turns={self.turns} asks for more than workload.pairs={self.pairs} hold.")
        if self.path:
            next(self._rows())

    def conversations(self, source: TokenSource) -> list[Conversation]:
        """Return the conversations of the file's first rows, or about hidden pairs.

        Raises:
            ValueError: if there is no tokenizer, or a row has another form.
        """
        if not self.path:
            return self._about_pairs(source)
        tokenizer_of(source, "multi_turn")
        rows = (row for row, _ in zip(self._rows(), range(self.samples), strict=False))
        return [self._conversation(source, *row) for row in rows]

    def _about_pairs(self, source: TokenSource) -> list[Conversation]:
        tasks, rng = needed(source), random.Random(f"multi_turn-{source.seed}")
        first = len(tasks.question_mark) + 1 if self.question_in_cache else 0
        context = self.prompt_tokens - first
        found = []
        for _ in range(self.samples):
            sample = tasks.key_value(rng, context_tokens=context, pairs=self.pairs, questions=self.turns)
            pieces = sample.pieces
            turns = [
                Turn(question=question, references=(source.tokenizer.decode(list(answer)),), new_tokens=len(answer))
                for question, answer in zip(pieces[1::2], pieces[2::2], strict=True)
            ]
            chance = 1 / len(tasks.values)
            found.append(
                Conversation(task="pairs", context=pieces[0], turns=tuple(turns), metric="exact", chance=chance)
            )
        return found

    def _rows(self) -> Iterator[tuple[str, str, list[tuple[str, tuple[str, ...]]]]]:
        """Yield where a row stands, its context, and its questions with their answers."""
        is_empty = True
        for place, row in json_rows(self.path):
            is_empty = False
            yield place, str(row.get("context", "")), _turns(place, row)
        if is_empty:
            raise ValueError(f"workload.path={self.path} has no conversation.")

    def _conversation(
        self, source: TokenSource, place: str, context: str, turns: list[tuple[str, tuple[str, ...]]]
    ) -> Conversation:
        questions = [question for question, _ in turns]
        is_chat = writes_chats(source.tokenizer, self.chat)
        if is_chat:
            first, *asked = as_chat(source.tokenizer, context, questions)
        else:
            first, asked = context, [f"\n{question}" for question in questions]
        ids = ids_of(source.tokenizer, source.prefix, first)
        if not 0 < len(ids) <= self.prompt_tokens:
            raise ValueError(
                f"{place} has a context of {len(ids)} tokens; workload.prompt_tokens={self.prompt_tokens} allows from "
                f"1 to as many. Raise it, or leave the row out."
            )
        return Conversation(
            task="file",
            context=ids,
            turns=tuple(
                Turn(question=plain_ids(source.tokenizer, text), references=answers, new_tokens=self.new_tokens)
                for text, (_, answers) in zip(asked, turns, strict=True)
            ),
            metric=self.metric,
            is_chat=is_chat,
        )


def _turns(place: str, row: dict[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
    turns, references = row.get("turns"), row.get("reference") or []
    if not isinstance(turns, list) or not turns:
        raise ValueError(f'{place} must have "turns", a list of questions; it has {", ".join(row) or "nothing"}.')
    if all(isinstance(turn, str) for turn in turns):
        if references and len(references) != len(turns):
            raise ValueError(f'{place} has {len(turns)} turns and a "reference" of {len(references)}.')
        answers: list[tuple[str, ...]] = [(str(reference),) for reference in references] or [()] * len(turns)
        return list(zip(turns, answers, strict=True))
    if all(isinstance(turn, dict) and isinstance(turn.get("question"), str) for turn in turns):
        return [(turn["question"], tuple(map(str, turn.get("answers", [])))) for turn in turns]
    raise ValueError(f'{place}: each of "turns" must be a question, or an object with "question" and "answers".')
