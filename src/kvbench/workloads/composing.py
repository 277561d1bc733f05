"""Contexts put together in token ids, so that lengths and places are exact with any tokenizer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice
from typing import Any, TypeVar

from kvbench.workloads.source import TokenSource, no_tokenizer

Item = TypeVar("Item")
_DRAWS = 100  # before a haystack counts as one that holds everything


def tokenizer_of(source: TokenSource, workload: str) -> Any:
    """Return the tokenizer of a source.

    Raises:
        ValueError: if its model has none.
    """
    if source.tokenizer is None:
        raise no_tokenizer(workload)
    return source.tokenizer


def written(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Return the ids of a piece of text as it stands behind another: SentencePiece puts a space before each text."""
    line = tokenizer.encode("\n", add_special_tokens=False)
    both = tokenizer.encode("\n" + text, add_special_tokens=False)
    return tuple(both[len(line) :] if both[: len(line)] == line else tokenizer.encode(text, add_special_tokens=False))


def check_readable(tokenizer: Any, context: Sequence[int], answers: Iterable[str]) -> None:
    """Raise a ValueError that names the first answer that a context does not tell."""
    told = tokenizer.decode(list(context)).lower()
    for answer in answers:
        if answer.lower() not in told:
            raise ValueError(
                f"the tokenizer cannot write {answer!r} so that it is read again: it has no tokens for it. Choose "
                f"another model= or workload=."
            )


def woven(filler: Sequence[Item], needles: Sequence[Sequence[Item]], places: Sequence[int]) -> list[Item]:
    """Return filler with needles in it.

    Args:
        filler: what is hidden in.
        needles: in their order.
        places: of each, how much filler stands before it; they do not fall.
    """
    out: list[Item] = []
    done = 0
    for needle, place in zip(needles, places, strict=True):
        out += [*filler[done:place], *needle]
        done = place
    return [*out, *filler[done:]]


def found(ids: Sequence[int], part: Sequence[int]) -> int:
    """Return where a part begins for the first time."""
    whole, sought = tuple(ids), tuple(part)
    return next(at for at in range(len(whole)) if whole[at : at + len(sought)] == sought)


@dataclass(frozen=True, kw_only=True)
class Haystack:
    """What is hidden in.

    Args:
        ids: of the text [T].
        text: the same, to be read.
        name: for messages.
        is_endless: whether it goes on from its beginning; else another place of it is taken each time.
    """

    ids: tuple[int, ...]
    text: str
    name: str
    is_endless: bool = False

    @staticmethod
    def of(source: TokenSource, filler: str = "") -> Haystack:
        """Return a source's text, or a filler again and again."""
        if filler:
            ids = written(source.tokenizer, " " + filler)
            return Haystack(ids=ids, text=f"{filler} {filler}", name="workload.filler", is_endless=True)
        return Haystack(ids=source.text, text=source.tokenizer.decode(list(source.text)), name=source.name)

    @cached_property
    def _small(self) -> str:
        return self.text.lower()

    def window(self, rng: random.Random, tokens: int) -> list[int]:
        """Return so many tokens of it.

        Raises:
            ValueError: if it is too short.
        """
        if self.is_endless:
            return list(islice(cycle(self.ids), tokens))
        if tokens > len(self.ids):
            raise ValueError(
                f"{self.name} has {len(self.ids)} tokens, {tokens} are needed; lower workload.prompt_tokens or set "
                f"workload.path to a longer file."
            )
        start = rng.randrange(len(self.ids) - tokens + 1)
        return list(self.ids[start : start + tokens])

    def without(self, draw: Callable[[], str], key: str) -> str:
        """Return the first of what is drawn that does not stand in it.

        Raises:
            ValueError: that names the key of what is drawn.
        """
        for _ in range(_DRAWS):
            drawn = draw()
            if drawn.lower() not in self._small:
                return drawn
        raise ValueError(f"{self.name} has {drawn!r} in it already; change {key} or workload.path.")
