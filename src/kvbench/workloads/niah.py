"""A needle in a haystack: one sentence hidden at every depth of contexts of every length, and asked for.

Source: Kamradt, 2023 (gkamradt/LLMTest_NeedleInAHaystack). With a sentence that is repeated: the pass key of Mohtashami
    and Jaggi, 2023, arXiv:2305.16300 (epfml/landmark-attention, llama/run_test.py).
Deviates: the needle stands where its depth says and not at the end of a sentence, so that depths are exact with any
    tokenizer. Digits of a key differ from each other and its length is fixed, so that no key is easier than another;
    a pass key of the paper is any number from 1 to 50,000. An answer is right if the key is in it; Kamradt has a model
    judge it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

from kvbench.workloads.asked import Asked, Conversation, Turn
from kvbench.workloads.chats import Chat, Frame
from kvbench.workloads.composing import Haystack, check_readable, tokenizer_of, woven, written
from kvbench.workloads.source import TokenSource, positive, read_text

_KEY, _DIGIT = "{key}", "#"


@dataclass(frozen=True, kw_only=True)
class Niah(Asked):
    """A grid of lengths and depths, `samples` needles in each cell; what is asked for is in the context once.

    Args:
        task: name of the tasks, of which there is one for each length: its tokens stand behind it.
        path: UTF-8 text that is hidden in; "" for the held-out text.
        filler: what is repeated in place of a text; "" for the text.
        intro: what stands before it.
        needle: what is hidden, with {key} where the key stands.
        question: what is read after the context.
        key: what is asked for; every # is a digit that is drawn, none of them twice.
        lengths: of the contexts, as shares of `prompt_tokens`; the question counts where it is in the cache.
        depths: of the filler, the share of it that stands before the needle.
        new_tokens: most tokens of an answer.
        chat: "auto" writes a chat where the tokenizer has a template; "never" does not.
    """

    task: str
    path: str
    filler: str
    intro: str
    needle: str
    question: str
    key: str
    lengths: tuple[float, ...]
    depths: tuple[float, ...]
    new_tokens: int
    chat: Chat

    def __post_init__(self) -> None:
        """Refuse grids without cells, and needles that cannot be asked for."""
        super().__post_init__()
        positive("workload", new_tokens=self.new_tokens)
        if not rising(self.lengths) or not 0 < self.lengths[0] <= self.lengths[-1] <= 1:
            raise ValueError(f"workload.lengths must be rising shares above 0 and up to 1; got {list(self.lengths)}.")
        if not rising(self.depths) or not 0 <= self.depths[0] <= self.depths[-1] <= 1:
            raise ValueError(f"workload.depths must be rising shares from 0 to 1; got {list(self.depths)}.")
        if _KEY not in self.needle:
            raise ValueError(f"workload.needle must have {_KEY} in it; got {self.needle!r}.")
        if not self.question or not self.task:
            raise ValueError("workload.question and workload.task must not be empty.")
        if not self.key.strip() or self.key.count(_DIGIT) > 10:
            raise ValueError(f"workload.key must be a text with at most ten {_DIGIT}; got {self.key!r}.")
        if self.path and self.filler:
            raise ValueError("workload.filler is repeated in place of a text; leave it or workload.path empty.")
        if self.path:
            read_text(self.path)

    @property
    def text_path(self) -> str:
        """The file that is hidden in."""
        return self.path

    def conversations(self, source: TokenSource) -> list[Conversation]:
        """Return the samples of each cell, in the order of lengths and depths."""
        tokenizer = tokenizer_of(source, self.task)
        haystack, rng = Haystack.of(source, self.filler), random.Random(f"{self.task}-{source.seed}")
        frame = Frame.of(tokenizer, source.prefix, self.chat)
        before = (*frame.prefix, *written(tokenizer, self.intro))
        asked = written(tokenizer, self.question + frame.after)

        def sample(tokens: int, depth: float) -> Conversation:
            key = haystack.without(lambda: drawn(self.key, rng), "workload.key")
            needle = written(tokenizer, self.needle.replace(_KEY, key))
            count = self._filler(before, needle, tokens - (len(asked) if self.question_in_cache else 0))
            context = (*before, *woven(haystack.window(rng, count), [needle], [round(depth * count)]))
            turn = Turn(question=asked, references=(key,), new_tokens=self._room(tokenizer, key))
            check_readable(tokenizer, context, (key,))
            return Conversation(
                task=f"{self.task}_{tokens}",
                context=context,
                turns=(turn,),
                metric="contains_all",
                depth=depth,
                is_chat=frame.is_chat,
            )

        sizes = [round(share * self.prompt_tokens) for share in self.lengths]
        return [sample(*cell) for cell in product(sizes, self.depths) for _ in range(self.samples)]

    def _filler(self, before: Sequence[int], needle: Sequence[int], tokens: int) -> int:
        """Return how much of the haystack a context of so many tokens has."""
        count = tokens - len(before) - len(needle)
        if count < 1:
            raise ValueError(
                f"a context of {tokens} tokens cannot hold {len(before)} before the haystack and a needle of "
                f"{len(needle)}; raise workload.prompt_tokens={self.prompt_tokens} or workload.lengths."
            )
        return count

    def _room(self, tokenizer: Any, key: str) -> int:
        needed = len(written(tokenizer, f" {key}"))
        if needed > self.new_tokens:
            raise ValueError(f"workload.new_tokens={self.new_tokens} is too few for an answer of {needed} tokens.")
        return self.new_tokens


def rising(values: Sequence[float]) -> bool:
    """Return whether there are values and each is more than the one before."""
    return bool(values) and all(low < high for low, high in pairwise(values))


def drawn(key: str, rng: random.Random) -> str:
    """Return a key with digits in place of its marks, none of them twice."""
    digits = iter(rng.sample(range(10), key.count(_DIGIT)))
    return "".join(str(next(digits)) if mark == _DIGIT else mark for mark in key)
