"""Conversations through the cache: a context is read and compressed, then questions are asked and answered."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import nn

from kvbench.engines.arm import Arm
from kvbench.types import RunShape
from kvbench.workloads.asked import Conversation


class Decoder(Protocol):
    """What is used of a tokenizer."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = ...) -> str:
        """Return text."""


@dataclass(kw_only=True)
class Answer:
    """What a model generates, greedily, until it ends.

    Args:
        ends: token ids that end it.
        until: texts that end it.
        room: most tokens.
        tokens: generated so far, without the one that ended it.
        text: of these, up to the first of `until`.
        is_ended: whether the model ended it, rather than the room.
    """

    ends: Collection[int]
    until: Sequence[str]
    room: int
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    is_ended: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether nothing more is wanted."""
        return self.is_ended or len(self.tokens) == self.room

    def add(self, token: int, decoder: Decoder) -> None:
        """Take the next token; none after the end."""
        if self.is_whole:
            return
        self.is_ended = token in self.ends
        self.tokens += [] if self.is_ended else [token]
        if not (self.until or self.is_whole):  # nobody looks at the text yet
            return
        text = decoder.decode(self.tokens, skip_special_tokens=True)
        cuts = [at for at in (text.find(stop) for stop in self.until) if at >= 0]
        self.text, self.is_ended = text[: min(cuts, default=len(text))], self.is_ended or bool(cuts)


def converse(
    arm: Arm, conversations: Sequence[Conversation], *, question_in_cache: bool, decoder: Decoder
) -> list[list[Answer]]:
    """Return the answers of each conversation, one per turn, by its own choices.

    The question is always asked after compression; query-aware runs have it in the compressed prompt as well, so that
    an answer never comes from attention that nothing had left yet. What ends an answer is not read by the next turn.

    Args:
        arm: which.
        conversations: of the same lengths; several of them have one turn each.
        question_in_cache: whether the first question is part of what is compressed too.
        decoder: makes text of tokens.
    """
    ends = end_ids(arm.model, decoder)
    prompts = [[*one.context, *(one.turns[0].question if question_in_cache else ())] for one in conversations]
    asked = sum(len(turn.question) + turn.new_tokens for turn in conversations[0].turns)
    cache = arm.cache(RunShape(prompt_lengths=tuple(map(len, prompts)), new_tokens=asked))
    arm.prefill(cache, torch.tensor(prompts, device=arm.view.device))
    said: list[list[Answer]] = [[] for _ in conversations]
    for number in range(len(conversations[0].turns)):
        turns = [one.turns[number] for one in conversations]
        answers = [Answer(ends=ends, until=turn.until, room=turn.new_tokens) for turn in turns]
        for column in zip(*(turn.question for turn in turns), strict=True):
            logits = arm.step(cache, torch.tensor(column, device=arm.view.device)[:, None])
        is_last = number + 1 == len(conversations[0].turns)
        while True:
            token = logits.argmax(dim=-1, keepdim=True)
            for answer, mine in zip(answers, token[:, 0].tolist(), strict=True):
                answer.add(mine, decoder)
            is_whole = all(answer.is_whole for answer in answers)
            if is_whole and (is_last or answers[0].is_ended):
                break
            logits = arm.step(cache, token)
            if is_whole:
                break
        for mine, answer in zip(said, answers, strict=True):
            mine.append(answer)
    return said


def end_ids(model: nn.Module, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end an answer: those of the model's generation settings, or else the tokenizer's."""
    settings = getattr(model, "generation_config", None)
    ends = getattr(settings, "eos_token_id", None)
    ends = getattr(tokenizer, "eos_token_id", None) if ends is None else ends
    return frozenset() if ends is None else frozenset(ends if isinstance(ends, list | tuple) else [ends])


def batches(conversations: Sequence[Conversation], batch_size: int) -> list[list[int]]:
    """Return the numbers of conversations that are asked at once: of the same lengths and of one turn each."""

    def lengths(number: int) -> tuple[int, ...]:
        one = conversations[number]
        alone = number if len(one.turns) > 1 else -1
        return len(one.context), len(one.turns[0].question), one.turns[0].new_tokens, alone

    found = []
    for _, alike in groupby(sorted(range(len(conversations)), key=lengths), key=lengths):
        numbers = list(alike)
        found += [numbers[at : at + batch_size] for at in range(0, len(numbers), batch_size)]
    return sorted(found)
