"""Texts as a chat template writes them, cut where a context ends and where answers come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Chat = Literal["auto", "never"]

_END = "\ue000the context ends here\ue000"  # stand in a chat until its text is cut there
_ANSWER = "\ue000an answer comes here\ue000"
_DAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}{{ '' }}"  # what a template gets that asks for it


def writes_chats(tokenizer: Any, chat: Chat) -> bool:
    """Return whether prompts are written as chats: with "auto" where the tokenizer says how, with "never" nowhere."""
    return chat == "auto" and bool(getattr(tokenizer, "chat_template", None))


def as_chat(tokenizer: Any, context: str, questions: Sequence[str]) -> list[str]:
    """Return the text up to the end of a context, and what follows up to each answer, without the answers.

    Args:
        tokenizer: with a chat template.
        context: begins the first message.
        questions: the first one ends that message, every other is a message of its own.

    Raises:
        ValueError: if the template does not write every message once.
    """
    messages = [{"role": "user", "content": context + _END + questions[0]}]
    for question in questions[1:]:
        messages += [{"role": "assistant", "content": _ANSWER}, {"role": "user", "content": question}]
    text = rendered(tokenizer, messages)
    before, *after = text.split(_END)
    pieces = [before, *"".join(after).split(_ANSWER)]
    if len(after) != 1 or len(pieces) != len(questions) + 1:
        raise ValueError("the tokenizer's chat template does not write every message once; set workload.chat=never.")
    return pieces


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What stands around a message: nothing, or what a chat template writes.

    Args:
        prefix: ids before it, with what the tokenizer puts before every text.
        after: text between the message and the answer.
        is_chat: whether a template wrote them.
    """

    prefix: tuple[int, ...]
    after: str
    is_chat: bool

    @staticmethod
    def of(tokenizer: Any, prefix: tuple[int, ...], chat: Chat) -> Frame:
        """Return what stands around a message.

        Args:
            tokenizer: of the model.
            prefix: ids before every text.
            chat: "auto" for a chat where the tokenizer has a template, "never" for none.
        """
        if not writes_chats(tokenizer, chat):
            return Frame(prefix=prefix, after="", is_chat=False)
        before, after = as_chat(tokenizer, "", [""])
        return Frame(prefix=ids_of(tokenizer, prefix, before), after=after, is_chat=True)


def rendered(tokenizer: Any, messages: Sequence[Mapping[str, str]], *, goes_on: bool = False) -> str:
    """Return what a template writes of messages, up to where an answer comes.

    Args:
        tokenizer: with a chat template.
        messages: each with its role and its content.
        goes_on: whether the last message is the beginning of that answer.
    """
    text: str = tokenizer.apply_chat_template(
        messages,
        chat_template=_DAY + tokenizer.get_chat_template(),
        tokenize=False,
        add_generation_prompt=not goes_on,
        continue_final_message=goes_on,
        enable_thinking=False,  # models that can think first are told not to
    )
    return text


def ids_of(tokenizer: Any, prefix: tuple[int, ...], text: str) -> tuple[int, ...]:
    """Return the ids of what a context's text is, with what the tokenizer puts before every text, once.

    Args:
        tokenizer: of the model.
        prefix: ids before every text; a chat template may have written them already.
        text: up to the end of the context.
    """
    ids = plain_ids(tokenizer, text)
    return ids if ids[: len(prefix)] == prefix else (*prefix, *ids)


def plain_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Return the ids of a text and nothing before it."""
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
