"""RULER as a workload.

Source: Hsieh et al., 2024, arXiv:2404.06654; NVIDIA/RULER, whose prompts and numbers are in published.json.
Deviates: as the modules of the tasks say. Pieces of a prompt are tokenised one by one, so that lengths are exact. What
    stands around a chat is the tokenizer's own template, where it has one; the published script brings some of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from kvbench.workloads.asked import Asked, Conversation
from kvbench.workloads.chats import Chat, Frame
from kvbench.workloads.composing import Haystack, tokenizer_of
from kvbench.workloads.hub import hub_file
from kvbench.workloads.ruler.chains import chains
from kvbench.workloads.ruler.desk import PUBLISHED, Desk
from kvbench.workloads.ruler.documents import SOURCES, documents, read
from kvbench.workloads.ruler.lists import common_words, frequent_words
from kvbench.workloads.ruler.marks import MARKED, marked
from kvbench.workloads.ruler.needles import needles
from kvbench.workloads.source import TokenSource, read_text

Wording = Literal["published", "marks"]
TASKS = (*PUBLISHED["needles"], "vt", "cwe", "fwe", *SOURCES)


@dataclass(frozen=True, kw_only=True)
class Ruler(Asked):
    """Tasks of RULER. As there, `prompt_tokens` counts the context, the questions and room for the answers.

    Text fills it to the last token; of lines, words and documents there are as many whole ones as fit.

    Args:
        tasks: names of some of the thirteen.
        wording: as published, or in the marks that the embedded models were trained on.
        path: UTF-8 text that needles are hidden in and words are taken from; "" for the held-out text.
        squad: SQuAD 2.0's dev-v2.0.json, that qa_1 asks about; "" for the hub's, of one revision.
        hotpotqa: HotpotQA's hotpot_dev_distractor_v1.json, that qa_2 asks about; "" for the hub's, of one revision.
        chat: "auto" writes published prompts as chats where the tokenizer has a template; "never" does not.
    """

    tasks: tuple[str, ...]
    wording: Wording
    path: str
    squad: str
    hotpotqa: str
    chat: Chat

    def __post_init__(self) -> None:
        """Refuse tasks that there are not, or that lack their file."""
        super().__post_init__()
        if self.wording not in get_args(Wording):
            raise ValueError(f"workload.wording must be one of {', '.join(get_args(Wording))}; got {self.wording!r}.")
        can_be = MARKED if self.wording == "marks" else TASKS
        if not self.tasks or set(self.tasks) - set(can_be) or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(
                f"workload.tasks must be some of {', '.join(can_be)} with workload.wording={self.wording}, none twice; "
                f"got {list(self.tasks)}."
            )
        for task in set(self.tasks) & set(SOURCES):
            if path := getattr(self, SOURCES[task].key):
                read(task, path)
        if self.path:
            read_text(self.path)

    @property
    def text_path(self) -> str:
        """The file that needles are hidden in."""
        return self.path

    def bring(self) -> None:
        """Bring the documents that are asked about, or say which file is missing."""
        for task in set(self.tasks) & set(SOURCES):
            read(task, self._documents(task))

    def conversations(self, source: TokenSource) -> list[Conversation]:
        """Return the samples of each task."""
        tokenizer, haystack = tokenizer_of(source, "ruler"), Haystack.of(source)
        frame = Frame.of(tokenizer, source.prefix, "never" if self.wording == "marks" else self.chat)
        makers = dict.fromkeys(self.tasks, self._marked(source)) if self.wording == "marks" else self._published()
        made = []
        for task in self.tasks:
            desk = Desk(
                task=task,
                tokenizer=tokenizer,
                frame=frame,
                haystack=haystack,
                tokens=self.prompt_tokens,
                rng=random.Random(f"{task}-{source.seed}"),
            )
            made += [makers[task](desk) for _ in range(self.samples)]
        return made

    def _published(self) -> dict[str, Callable[[Desk], Conversation]]:
        return {
            **dict.fromkeys(PUBLISHED["needles"], needles),
            "vt": chains,
            "cwe": common_words,
            "fwe": frequent_words,
            **{task: partial(documents, path=self._documents(task)) for task in set(self.tasks) & set(SOURCES)},
        }

    def _documents(self, task: str) -> str:
        """Return the file of a task's questions."""
        source = SOURCES[task]
        return getattr(self, source.key) or str(hub_file(*source.hub, instead=f"workload.{source.key}=<the file>"))

    def _marked(self, source: TokenSource) -> Callable[[Desk], Conversation]:
        if source.tasks is None:
            raise ValueError(
                "workload.wording=marks needs a tokenizer with at least 128 one-token words of three or more small "
                "letters; set workload.wording=published or choose another model."
            )
        return partial(marked, tasks=source.tasks)
