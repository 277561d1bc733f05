"""Long answers that end by themselves: does a strategy make them longer, shorter, or other than the full cache's?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kvbench.workloads.asked import Asked, Conversation, Turn
from kvbench.workloads.chats import Chat, as_chat, ids_of, writes_chats
from kvbench.workloads.composing import tokenizer_of
from kvbench.workloads.rows import json_rows
from kvbench.workloads.source import TokenSource, positive


@dataclass(frozen=True, kw_only=True)
class LongGeneration(Asked):
    r"""Prompts that are answered until the model ends, or there is no more room; nothing is right or wrong.

    All of a prompt but its last token is compressed; that one is read through the cache, so that no answer begins with
    what was still whole.

    Args:
        path: JSON lines of {"prompt": ""}; "" for windows of the embedded text, to be gone on with.
        new_tokens: most tokens of an answer.
        until: texts that end an answer beside the model's own end; "\n" is the end of a line, as a shell passes it.
        chat: "auto" writes a file's prompts as chats where the tokenizer has a template, "never" as they are.
    """

    path: str
    new_tokens: int
    until: tuple[str, ...]
    chat: Chat

    question_in_cache: bool = field(default=False, init=False)  # there is none
    reference: Literal["none"] = field(default="none", init=False)

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing, and files without prompts."""
        super().__post_init__()
        positive("workload", new_tokens=self.new_tokens)
        if self.prompt_tokens < 2:
            raise ValueError(f"workload.prompt_tokens must be at least 2; got {self.prompt_tokens}.")
        if self.path:
            self._prompts()

    def conversations(self, source: TokenSource) -> list[Conversation]:
        """Return a conversation of one turn for each prompt.

        Raises:
            ValueError: if there is no tokenizer, or a prompt is too long.
        """
        tokenizer_of(source, "long_generation")
        if not self.path:
            return [self._conversation(tuple(ids)) for ids in source.windows(self.samples, self.prompt_tokens)]
        found, is_chat = [], writes_chats(source.tokenizer, self.chat)
        for place, prompt in self._prompts()[: self.samples]:
            text = "".join(as_chat(source.tokenizer, "", [prompt])) if is_chat else prompt
            ids = ids_of(source.tokenizer, source.prefix, text)
            if not 2 <= len(ids) <= self.prompt_tokens:
                raise ValueError(
                    f"{place} has a prompt of {len(ids)} tokens; workload.prompt_tokens={self.prompt_tokens} allows "
                    f"from 2 to as many. Raise it, or leave the row out."
                )
            found.append(self._conversation(ids, is_chat=is_chat))
        return found

    def _prompts(self) -> list[tuple[str, str]]:
        found = []
        for place, row in json_rows(self.path):
            if not isinstance(row.get("prompt"), str):
                raise ValueError(f'{place} must have "prompt", a text; it has {", ".join(row) or "nothing"}.')
            found.append((place, row["prompt"]))
        if not found:
            raise ValueError(f"workload.path={self.path} has no prompt.")
        return found

    def _conversation(self, ids: tuple[int, ...], *, is_chat: bool = False) -> Conversation:
        until = tuple(text.replace("\\n", "\n") for text in self.until)
        turn = Turn(question=ids[-1:], references=(), new_tokens=self.new_tokens, until=until)
        return Conversation(task="answers", context=ids[:-1], turns=(turn,), metric="exact", is_chat=is_chat)
