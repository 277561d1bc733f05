"""What every workload has that asks about a context which has been compressed, and scores the answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import chain, cycle, islice
from typing import Literal

from kvbench.types import RunShape
from kvbench.workloads.metrics import METRICS, Metric
from kvbench.workloads.source import TokenSource, positive

TIMED_TOKENS = 32  # decoded after the prompt where time and memory are measured


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One question, and what counts as its answer.

    Args:
        question: token ids, read one at a time through the compressed cache; at least one.
        references: answers that are right; how an answer is held against them, the metric says. None: not scored.
        new_tokens: most tokens that are generated.
        until: texts that end an answer beside the model's own end; none of them is part of it.
    """

    question: tuple[int, ...]
    references: tuple[str, ...]
    new_tokens: int
    until: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a turn that asks nothing."""
        if not self.question or self.new_tokens < 1:
            raise ValueError("a turn needs a question of at least one token and room for at least one answered.")


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A context that is compressed, and what is asked about it.

    Args:
        task: name of what it is a sample of; scores are averaged by task first.
        context: token ids, with what the tokenizer puts before every text [T].
        turns: one after the other; what was asked and answered before stays in the cache.
        metric: name in `kvbench.workloads.metrics.METRICS`, or what returns the score of an answer.
        classes: all answers there are, where they are finitely many.
        depth: where in the context lies what is asked for, from 0 (its start) to 1; None where that means nothing.
        chance: score of whoever guesses.
        is_chat: whether the tokenizer's chat template wrote it.
    """

    task: str
    context: tuple[int, ...]
    turns: tuple[Turn, ...]
    metric: str | Metric
    classes: tuple[str, ...] = ()
    depth: float | None = None
    chance: float = 0.0
    is_chat: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be asked or scored."""
        if not self.context or not self.turns:
            raise ValueError(f"a sample of {self.task} needs a context and at least one turn.")
        if isinstance(self.metric, str) and self.metric not in METRICS:
            raise ValueError(f"{self.task} is scored by {self.metric!r}; metrics are {', '.join(sorted(METRICS))}.")

    @property
    def longest(self) -> int:
        """Tokens of context, questions and the longest answers."""
        return len(self.context) + sum(len(turn.question) + turn.new_tokens for turn in self.turns)

    def score_of(self, answer: str, turn: Turn) -> float | None:
        """Return the score of an answer to one of the turns, from 0 to 1; None where nothing is right or wrong."""
        score = METRICS[self.metric] if isinstance(self.metric, str) else self.metric
        return score(answer, turn.references, self.classes) if turn.references else None


@dataclass(frozen=True, kw_only=True)
class Asked(ABC):
    """A workload of conversations.

    Time and memory are those of prompts of `prompt_tokens` tokens, made of the conversations one behind the other.

    Args:
        prompt_tokens: most tokens that are read and compressed of one context.
        samples: conversations of each task.
        batch_size: rows at once, where rows are of the same lengths and asked once.
        question_in_cache: whether the first question is part of what is compressed too (query-aware).
        reference: score that the full cache is known to reach; "auto" for what is stored of the model, "none" for none.
    """

    prompt_tokens: int
    samples: int
    batch_size: int
    question_in_cache: bool
    reference: float | Literal["auto", "none"]

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        numbers = {name: getattr(self, name) for name in ("prompt_tokens", "samples", "batch_size")}
        positive("workload", **numbers)
        if not isinstance(self.reference, str) and not 0 <= self.reference <= 1:
            raise ValueError(f"workload.reference must be auto, none or a score from 0 to 1; got {self.reference}.")

    @property
    def text_path(self) -> str:
        """File of the text that contexts are made of; "" for the held-out text."""
        return ""

    def bring(self) -> None:  # noqa: B027  most read nothing from there
        """Bring what is read from the hub, where something is.

        Raises:
            ValueError: that says which file is missing, and which key takes it.
        """

    @property
    def query_aware(self) -> bool:
        """Whether what is compressed knows the question."""
        return self.question_in_cache

    def unavailable(self) -> str | None:
        """Return what has to be installed first and how, or None."""
        return None

    @abstractmethod
    def conversations(self, source: TokenSource) -> list[Conversation]:
        """Return what is asked, the same for the same seed.

        Raises:
            ValueError: that names the key to change, where there is no tokenizer or not enough to ask about.
        """

    def runs(self) -> list[RunShape]:
        """Return the shape of one batch, as it is timed and weighed."""
        return [RunShape(prompt_lengths=(self.prompt_tokens,) * self.batch_size, new_tokens=TIMED_TOKENS)]

    def ids(self, source: TokenSource, run: RunShape) -> list[list[int]]:
        """Return prompt and continuation of every row [B, prompt + new]."""
        asked = replace(self, samples=min(self.samples, self.batch_size)).conversations(source)  # no more are timed
        texts = [[*one.context, *(token for turn in one.turns for token in turn.question)] for one in asked]
        rows = ([*texts[row % len(texts) :], *texts[: row % len(texts)]] for row in range(run.batch_size))
        return [list(islice(cycle(chain(*row)), run.prompt_tokens + TIMED_TOKENS)) for row in rows]
