"""The harness' tasks asked or scored wrongly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvbench.workloads import harness, lm_eval
from kvbench.workloads.asked import Conversation
from kvbench.workloads.chats import rendered
from kvbench.workloads.harness import HarnessScore, Prompt
from kvbench.workloads.lm_eval import LmEval
from kvbench.workloads.source import TokenSource
from tests.mutants.core_mutant import Mutant
from tests.support import harness as support

REAL_CONVERSATION, REAL_PROMPT, REAL_READ = LmEval._conversation, harness._prompt, harness.read
REAL_SCORE, REAL_RENDERED = harness._score, rendered
SPLIT, ENDS = support.all_of_a_prompt_but_its_last_token_is_compressed, support.answers_end_where_the_task_says
SCORED, SAME = (
    support.answers_are_scored_by_the_tasks_filter_and_metric,
    support.conversations_are_equal_where_they_ask_and_score_the_same,
)
SHOWN, DRAWN = support.examples_are_as_many_as_are_said, support.examples_are_the_harness_own_draw
CHAT = support.chats_are_written_by_the_template


def without_what_comes_before(self: LmEval, source: TokenSource, prompt: Prompt) -> Conversation:
    """Put nothing before a text."""
    return REAL_CONVERSATION(self, replace(source, prefix=()), prompt)


def two_tokens_asked(self: LmEval, source: TokenSource, prompt: Prompt) -> Conversation:
    """Compress less."""
    made = REAL_CONVERSATION(self, source, prompt)
    turn = replace(made.turns[0], question=(made.context[-1], *made.turns[0].question))
    return replace(made, context=made.context[:-1], turns=(turn,))


def read_twice(self: LmEval, source: TokenSource, prompt: Prompt) -> Conversation:
    """Compress what is read through the cache, too."""
    made = REAL_CONVERSATION(self, source, prompt)
    return replace(made, context=(*made.context, *made.turns[0].question))


def uncapped(self: LmEval, source: TokenSource, prompt: Prompt) -> Conversation:
    """Let answers be as long as their task allows."""
    made = REAL_CONVERSATION(self, source, prompt)
    return replace(made, turns=(replace(made.turns[0], new_tokens=prompt.new_tokens),))


def unended(name: str, task: Any, request: Any, metric: str) -> Prompt:
    """Forget what ends an answer."""
    return replace(REAL_PROMPT(name, task, request, metric), until=())


def plain(self: HarnessScore, answer: str) -> Mapping[str, Any]:
    """Leave filters out."""
    found: Mapping[str, Any] = self.maker.process_results(dict(self.request.doc), [answer])
    return found


def written_into(self: HarnessScore, answer: str) -> Mapping[str, Any]:
    """Score with the task's own record."""
    request = self.request
    request.resps, request.filtered_resps = [answer] * request.repeats, {}
    next(each for each in self.maker._filters if each.name == self.through).apply([request])
    found: Mapping[str, Any] = self.maker.process_results(request.doc, [request.filtered_resps[self.through]])
    return found


def once(name: str, task: Any, request: Any, metric: str) -> HarnessScore:
    """Say an answer once, however often it is asked."""
    return REAL_SCORE(name, task, replace(request, repeats=1), metric)


def the_last_filter(name: str, task: Any, request: Any, metric: str) -> HarnessScore:
    """Take another filter where none is said."""
    made = REAL_SCORE(name, task, request, metric)
    return made if "," in metric else replace(made, through=task._filters[1].name)


def as_a_whole(self: HarnessScore, answer: str, references: Sequence[str], classes: Sequence[str]) -> float:
    """Compare with the target."""
    return float(answer.strip() in references)


@dataclass(frozen=True, kw_only=True)
class Identical(HarnessScore):
    """Equal to itself alone."""

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, kw_only=True)
class Alike(HarnessScore):
    """Equal to all others."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HarnessScore)

    __hash__ = None  # type: ignore[assignment]


def none_shown(name: str, task: Any, num_fewshot: int) -> None:
    """Show no examples but those asked for."""
    task.set_config(key="num_fewshot", value=max(0, num_fewshot))


def as_the_task_says(name: str, task: Any, num_fewshot: int) -> None:
    """Show what the task says."""
    task.set_config(key="num_fewshot", value=task.get_config("num_fewshot") or 0)


def in_plain_text(path: str, names: Sequence[str], **settings: Any) -> tuple[Prompt, ...]:
    """Write no chats."""
    return REAL_READ(path, names, **settings | {"chat": None})


def not_gone_on(tokenizer: Any, messages: Sequence[Mapping[str, str]], *, goes_on: bool = False) -> str:
    """End the beginning of an answer."""
    return REAL_RENDERED(tokenizer, messages)


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="nothing before", patches=((LmEval, "_conversation", without_what_comes_before),), killed_by=(SPLIT, DRAWN)
    ),
    Mutant(name="two tokens are asked", patches=((LmEval, "_conversation", two_tokens_asked),), killed_by=(SPLIT,)),
    Mutant(name="read twice", patches=((LmEval, "_conversation", read_twice),), killed_by=(SPLIT, CHAT)),
    Mutant(name="no cap", patches=((LmEval, "_conversation", uncapped),), killed_by=(ENDS,)),
    Mutant(name="nothing ends", patches=((harness, "_prompt", unended),), killed_by=(ENDS,)),
    Mutant(name="other limits", patches=((harness, "_LIMITS", ("max_gen_toks",)),), killed_by=(ENDS,)),
    Mutant(name="other lengths", patches=((harness, "_MOST", 128),), killed_by=(ENDS,)),
    Mutant(name="no filter", patches=((HarnessScore, "results", plain),), killed_by=(SCORED,)),
    Mutant(
        name="a task writes into its record",
        patches=((HarnessScore, "results", written_into),),
        killed_by=(SCORED,),
        error=KeyError,
    ),
    Mutant(name="said once", patches=((harness, "_score", once),), killed_by=(SCORED,)),
    Mutant(name="the last filter", patches=((harness, "_score", the_last_filter),), killed_by=(SCORED, SAME)),
    Mutant(name="a score of ours", patches=((HarnessScore, "__call__", as_a_whole),), killed_by=(SCORED,)),
    Mutant(name="no two are equal", patches=((harness, "HarnessScore", Identical),), killed_by=(SAME,)),
    Mutant(name="all are equal", patches=((harness, "HarnessScore", Alike),), killed_by=(SAME,)),
    Mutant(name="none shown", patches=((harness, "_set_examples", none_shown),), killed_by=(SHOWN, DRAWN)),
    Mutant(name="always as the task says", patches=((harness, "_set_examples", as_the_task_says),), killed_by=(SHOWN,)),
    Mutant(name="another draw", patches=((harness, "_OTHER_SEED", 0),), killed_by=(DRAWN,)),
    Mutant(name="no chats", patches=((harness, "read", in_plain_text),), killed_by=(CHAT,)),
    Mutant(name="an answer ends begun", patches=((lm_eval, "rendered", not_gone_on),), killed_by=(CHAT,)),
)
