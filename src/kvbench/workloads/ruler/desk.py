"""What every task of RULER is made with: published prompts, words and numbers that stand nowhere else, and room."""

from __future__ import annotations

import json
import random
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from typing import Any, Final

from kvbench.workloads.asked import Conversation, Turn
from kvbench.workloads.chats import Frame
from kvbench.workloads.composing import Haystack, check_readable, written

PUBLISHED: Final[dict[str, Any]] = json.loads(
    (files("kvbench.workloads.ruler") / "published.json").read_text(encoding="utf-8")
)
_WORDS = re.compile(r"\b[a-z]{4,10}\b")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What stands around a context's body.

    Args:
        before: ids, with what the tokenizer puts before every text.
        question: ids, the beginning of the answer included.
        new_tokens: most tokens of an answer.
        room: tokens that are left for the body.
    """

    before: tuple[int, ...]
    question: tuple[int, ...]
    new_tokens: int
    room: int


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What samples of one task are made with.

    Args:
        task: its name.
        tokenizer: of the model.
        frame: what stands around a prompt.
        haystack: running text.
        tokens: of context, question and answer together, at most.
        rng: source of every choice.
    """

    task: str
    tokenizer: Any
    frame: Frame
    haystack: Haystack
    tokens: int
    rng: random.Random
    _written: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False)

    def ids(self, text: str) -> tuple[int, ...]:
        """Return the ids of a piece of text."""
        if text not in self._written:
            self._written[text] = written(self.tokenizer, text)
        return self._written[text]

    @cached_property
    def words(self) -> list[str]:
        """Every word of the haystack with four to ten letters, all small."""
        return sorted(set(_WORDS.findall(self.haystack.text)))

    def some_words(self, count: int) -> list[str]:
        """Return different words of the haystack.

        Raises:
            ValueError: if it has too few.
        """
        if count > len(self.words):
            raise ValueError(
                f"{self.task} needs {count} words of {self.haystack.name}, which has {len(self.words)} different ones "
                f"of four to ten letters; set workload.path to a longer text or lower workload.prompt_tokens."
            )
        return self.rng.sample(self.words, count)

    def fresh(self, kind: str) -> str:
        """Return a pair of words, a number of seven digits or a UUID that the haystack does not have."""
        draw = {
            "words": lambda: "-".join(self.some_words(2)),
            "numbers": lambda: str(self.rng.randrange(10**6, 10**7)),
            "uuids": lambda: str(uuid.UUID(int=self.rng.getrandbits(128), version=4)),
        }[kind]
        return self.haystack.without(draw, "workload.path")

    def name(self, letters: int, alphabet: str) -> str:
        """Return letters drawn one by one."""
        return "".join(self.rng.choices(alphabet, k=letters))

    def text(self, name: str, context: str, **said: object) -> str:
        """Return a published prompt as text, with the beginning of its answer."""
        return "".join(parts_of(name, context, **said))

    def prompt(self, name: str, separator: str, example: str = "", **said: object) -> Prompt:
        """Return what stands around a body whose items each begin with a separator.

        Args:
            name: of the published prompt.
            separator: of which the text before the body already ends with one, which is taken away.
            example: text that comes first.
            said: what stands in the template's places.
        """
        before, after = self.frame.after.join(parts_of(name, "\0", **said)).split("\0")
        ids = (*self.frame.prefix, *self.ids(example + before.removesuffix(separator)))
        question, new_tokens = self.ids(after), int(PUBLISHED["prompts"][name]["new_tokens"])
        room = self.tokens - len(ids) - len(question) - new_tokens
        return Prompt(before=ids, question=question, new_tokens=new_tokens, room=room)

    def conversation(
        self,
        prompt: Prompt,
        body: Sequence[int],
        references: Sequence[str],
        *,
        told: Sequence[str],
        depth: float | None,
    ) -> Conversation:
        """Return a sample.

        Args:
            prompt: around the body.
            body: ids.
            references: right answers.
            told: what has to stand in the context, as the tokenizer writes it.
            depth: where what is asked for begins, in tokens of the body.
        """
        context = (*prompt.before, *body)
        check_readable(self.tokenizer, body, told)
        turn = Turn(question=prompt.question, references=tuple(references), new_tokens=prompt.new_tokens)
        return Conversation(
            task=self.task,
            context=context,
            turns=(turn,),
            metric="contains_any" if self.task.startswith("qa") else "contains_all",
            depth=None if depth is None else (len(prompt.before) + depth) / len(context),
            is_chat=self.frame.is_chat,
        )

    def short(self, what: str) -> ValueError:
        """Return what is raised where a sample does not fit."""
        return ValueError(f"workload.prompt_tokens={self.tokens} is too short for {what} of {self.task}; raise it.")


def parts_of(name: str, context: str, **said: object) -> list[str]:
    """Return a published prompt as text, and the beginning of its answer."""
    prompt = PUBLISHED["prompts"][name]
    return [str(prompt[part]).format(context=context, **said) for part in ("template", "answer_prefix")]
