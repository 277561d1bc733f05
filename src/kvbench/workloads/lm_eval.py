"""Generation tasks of EleutherAI's lm-evaluation-harness, asked through the compressed cache and scored as it scores.

Source: github.com/EleutherAI/lm-evaluation-harness, release 0.4.13: prompts, examples, stop texts, filters and metrics.
Deviates: tasks that compare likelihoods are refused, for these never read the cache; so are those that sample, for
    answers here are greedy, and metrics of all answers together. A prompt that is too long is refused, where the
    harness cuts its beginning. For a chat template every day is the same, and models that can think first are told not
    to. The score of several tasks is the mean of theirs, whatever their groups say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from kvbench.workloads import harness
from kvbench.workloads.asked import Asked, Conversation, Turn
from kvbench.workloads.chats import Chat, ids_of, rendered, writes_chats
from kvbench.workloads.composing import tokenizer_of
from kvbench.workloads.harness import Prompt
from kvbench.workloads.source import TokenSource, positive


@dataclass(frozen=True, kw_only=True)
class LmEval(Asked):
    """Requests of the harness' tasks, the first `samples` documents of each; the same for every seed.

    The harness does not say where a context ends and a question begins. All of a prompt but its last token is
    compressed, that one is read through the cache: what is compressed knows the question (query-aware), but no answer
    begins with what was still whole. Guessing is taken to score nothing, as the harness does not say what it would.

    Args:
        tasks: names of tasks, groups or tags.
        path: folder of task yamls, which are read in place of the harness' own; "" for those.
        num_fewshot: examples in each prompt; -1 for what each task says.
        metric: "" for a task's first metric after its first filter; a metric, or metric,filter as the harness' tables
            have them.
        new_tokens: most tokens of an answer, where its task allows as many.
        chat: "auto" writes prompts as chats where the tokenizer has a template; "never" leaves them as they are.
    """

    tasks: tuple[str, ...]
    path: str
    num_fewshot: int
    metric: str
    new_tokens: int
    chat: Chat

    question_in_cache: bool = field(default=False, init=False)  # but for its last token it is there already

    def __post_init__(self) -> None:
        """Refuse tasks and numbers that cannot be."""
        super().__post_init__()
        positive("workload", new_tokens=self.new_tokens)
        if not self.tasks:
            raise ValueError("workload.tasks must name a task of the harness, such as gsm8k; got none.")
        if self.num_fewshot < -1:
            raise ValueError(f"workload.num_fewshot must be -1, for what a task says, or more; got {self.num_fewshot}.")
        if self.path and not Path(self.path).is_dir():
            raise ValueError(f"workload.path={self.path} is no folder; it must be one of task yamls.")

    @property
    def query_aware(self) -> bool:
        """Whether what is compressed knows the question."""
        return True

    def unavailable(self) -> str | None:
        """Return what has to be installed first and how, or None."""
        return harness.missing()

    def conversations(self, source: TokenSource) -> list[Conversation]:
        """Return a conversation of one turn for each request.

        Raises:
            ValueError: if there is no tokenizer, a task cannot be asked or scored here, or a prompt is too long.
        """
        tokenizer = tokenizer_of(source, "lm_eval")
        return [self._conversation(source, prompt) for prompt in _prompts(self, tokenizer)]

    def _conversation(self, source: TokenSource, prompt: Prompt) -> Conversation:
        ids = ids_of(source.tokenizer, source.prefix, prompt.text)
        if not 2 <= len(ids) <= self.prompt_tokens:
            raise ValueError(
                f"document {prompt.score.number} of {prompt.score.task} has a prompt of {len(ids)} tokens; "
                f"workload.prompt_tokens={self.prompt_tokens} allows from 2 to as many. Raise it, or lower "
                f"workload.num_fewshot."
            )
        turn = Turn(
            question=ids[-1:],
            references=prompt.targets,
            new_tokens=min(prompt.new_tokens, self.new_tokens),
            until=prompt.until,
        )
        return Conversation(
            task=prompt.score.task,
            context=ids[:-1],
            turns=(turn,),
            metric=prompt.score,
            is_chat=writes_chats(source.tokenizer, self.chat),
        )


@lru_cache(maxsize=2)  # for each arm's tokenizer: reading thousands of yamls takes seconds
def _prompts(workload: LmEval, tokenizer: Any) -> tuple[Prompt, ...]:
    def chat(messages: list[dict[str, str]], *, add_generation_prompt: bool = True) -> str:
        return rendered(tokenizer, messages, goes_on=not add_generation_prompt)

    return harness.read(
        workload.path,
        workload.tasks,
        num_fewshot=workload.num_fewshot,
        samples=workload.samples,
        metric=workload.metric,
        chat=chat if writes_chats(tokenizer, workload.chat) else None,
    )
