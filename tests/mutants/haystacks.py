"""Haystacks that get one thing wrong."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from kvbench.workloads import composing, niah
from kvbench.workloads.asked import Conversation
from kvbench.workloads.composing import Haystack
from kvbench.workloads.niah import Niah
from kvbench.workloads.recall import Recall, RecallTasks
from kvbench.workloads.ruler import chains, documents, lists, marks, needles
from kvbench.workloads.ruler.desk import Desk, Prompt
from kvbench.workloads.ruler.workload import Ruler
from kvbench.workloads.source import TokenSource
from tests.mutants.core_mutant import Mutant
from tests.support import haystacks

Many = list[tuple[int, ...]]
REAL_WINDOW, REAL_PROMPT, REAL_CONVERSATION = Haystack.window, Desk.prompt, Desk.conversation
REAL_NOISE, REAL_ALIKE, REAL_COST, REAL_ZIPF, REAL_LIST = (
    needles.noise,
    needles.alike,
    lists.cost,
    lists.zipf,
    lists.word_list,
)
REAL_ASSIGNMENTS, REAL_READ, REAL_PAIRS, REAL_FILLER = (
    chains.assignments,
    documents.read,
    marks.pairs_alone,
    Niah._filler,
)
REAL_WOVEN, REAL_GRID, REAL_TASKS = composing.woven, Niah.conversations, Ruler.conversations
REAL_CONVERSATIONS, REAL_KEY_VALUE, REAL_HIDDEN_IN = Recall.conversations, RecallTasks.key_value, marks.hidden_in


def short_window(self: Haystack, rng: random.Random, tokens: int) -> list[int]:
    """Give a token less than asked for."""
    return REAL_WINDOW(self, rng, tokens)[1:]


def question_forgotten(self: Niah, before: Sequence[int], needle: Sequence[int], tokens: int) -> int:
    """Do not count a question that is in the cache."""
    return REAL_FILLER(self, before, needle, tokens + 10 * self.question_in_cache)


def from_the_end(filler: Sequence[Any], hidden: Sequence[Sequence[Any]], places: Sequence[int]) -> list[Any]:
    """Count depths from the end."""
    return REAL_WOVEN(filler, hidden, [len(filler) - place for place in places][::-1])


def behind(filler: Sequence[Any], hidden: Sequence[Sequence[Any]], places: Sequence[int]) -> list[Any]:
    """Hide everything at the end."""
    return [*filler, *(item for needle in hidden for item in needle)]


def any_draw(self: Haystack, draw: Callable[[], str], key: str) -> str:
    """Take what stands in the text as well."""
    return draw()


def any_digits(key: str, rng: random.Random) -> str:
    """Draw each digit by itself, most often the same."""
    return "".join("7" if mark == "#" else mark for mark in key)


def with_a_space(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Write each piece as a text of its own."""
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def without_answers_room(self: Desk, *given: Any, **said: Any) -> Prompt:
    """Leave no room for an answer."""
    prompt = REAL_PROMPT(self, *given, **said)
    return replace(prompt, room=prompt.room + prompt.new_tokens)


def another_separator(self: Desk, name: str, separator: str, *given: Any, **said: Any) -> Prompt:
    """Leave the separator where the body brings its own."""
    return REAL_PROMPT(self, name, "", *given, **said)


def one_line_less(desk: Desk, *given: Any) -> Many:
    """Leave room for one line more."""
    return REAL_NOISE(desk, *given)[1:]


def one_needle_less(desk: Desk, *given: Any) -> Many:
    """Leave room for one needle more."""
    return REAL_ALIKE(desk, *given)[1:]


def dear(desk: Desk, *given: Any) -> tuple[int, int]:
    """Count a token too much for each number."""
    spent, last = REAL_COST(desk, *given)
    return spent + last - given[-1], last


def first_answer_alone(self: Desk, *given: Any, **said: Any) -> Conversation:
    """Ask for one of the answers."""
    made = REAL_CONVERSATION(self, *given, **said)
    turn = replace(made.turns[0], references=made.turns[0].references[:1] * len(made.turns[0].references))
    return replace(made, turns=(turn,))


def shallow(self: Desk, *given: Any, **said: Any) -> Conversation:
    """Count depths from the beginning of the body."""
    made = REAL_CONVERSATION(self, *given, **said)
    return made if made.depth is None else replace(made, depth=made.depth / 2)


def without_seeds(self: Any, source: TokenSource) -> list[Conversation]:
    """Draw the same for every seed."""
    real = REAL_GRID if isinstance(self, Niah) else REAL_TASKS
    return real(self, replace(source, seed=0))


def broken_chain(desk: Desk, letters: int, taken: str) -> tuple[list[str], str, list[str]]:
    """Give the last variable what is nobody's."""
    names, value, told = REAL_ASSIGNMENTS(desk, letters, taken)
    return names, value, [*told[:-1], f"VAR {names[-1]} = VAR NONE"]


def turned_around(desk: Desk, words: Sequence[str], repeats: dict[str, int]) -> tuple[list[str], Sequence[str]]:
    """Repeat the others most."""
    return REAL_LIST(desk, words, {"common": repeats["others"], "others": repeats["common"]})


def even(words: int, kinds: int) -> list[int]:
    """Give the words that are asked for in another order."""
    first, *rest = REAL_ZIPF(words, kinds)
    return [first, *rest[3:], *rest[:3]]


def always_the_first(number: int) -> str:
    """Call every document the first."""
    return "\n\nDocument 1:\n"


def needed_left_out(task: str, path: str) -> Any:
    """Take away what a question needs."""
    asked, texts = REAL_READ(task, path)
    return tuple(replace(one, needed=texts[:1]) for one in asked), texts


def other_value(desk: Desk, tasks: RecallTasks, room: int) -> Any:
    """Take the last value for that of every key."""
    context, [(question, _)] = REAL_PAIRS(desk, tasks, room)
    return context, [(question, context[-1:])]


def text_alone(desk: Desk, tasks: RecallTasks, haystack: str) -> RecallTasks:
    """Hide pairs in text where sentences that repeat are meant."""
    return REAL_HIDDEN_IN(desk, tasks, "text")


def one_token_short(self: RecallTasks, rng: random.Random, **given: Any) -> Any:
    """Hide pairs in a token less."""
    return REAL_KEY_VALUE(self, rng, **{**given, "context_tokens": given["context_tokens"] - 1})


def other_references(self: Recall, source: Any) -> list[Conversation]:
    """Take each answer for that of the question before."""
    made = REAL_CONVERSATIONS(self, source)
    return [replace(one, turns=other.turns) for one, other in zip(made, [*made[1:], made[0]], strict=True)]


MUTANTS = (
    Mutant(
        name="windows are short",
        patches=((Haystack, "window", short_window),),
        killed_by=(haystacks.lengths_are_those_of_the_grid, haystacks.text_fills_the_prompt_to_the_last_token),
    ),
    Mutant(
        name="a question in the cache is not counted",
        patches=((Niah, "_filler", question_forgotten),),
        killed_by=(haystacks.lengths_are_those_of_the_grid,),
    ),
    Mutant(
        name="depths count from the end",
        patches=((niah, "woven", from_the_end),),
        killed_by=(haystacks.needles_stand_at_their_depth,),
    ),
    Mutant(
        name="needles stand at the end",
        patches=((niah, "woven", behind),),
        killed_by=(haystacks.needles_stand_at_their_depth,),
    ),
    Mutant(
        name="keys stand in the text",
        patches=((Haystack, "without", any_draw),),
        killed_by=(haystacks.keys_are_none_of_the_haystack,),
    ),
    Mutant(
        name="digits are alike",
        patches=((niah, "drawn", any_digits),),
        killed_by=(haystacks.the_default_needle_is_what_the_embedded_models_were_trained_on,),
    ),
    Mutant(
        name="pieces begin with a space",
        patches=((haystacks, "written", with_a_space),),
        killed_by=(haystacks.a_piece_of_text_has_no_space_before_it,),
    ),
    Mutant(
        name="seeds do not count",
        patches=((Niah, "conversations", without_seeds),),
        killed_by=(haystacks.other_seeds_hide_other_things,),
    ),
    Mutant(
        name="seeds do not count in RULER's tasks",
        patches=((Ruler, "conversations", without_seeds),),
        killed_by=(haystacks.other_seeds_hide_other_things,),
    ),
    Mutant(
        name="answers have no room",
        patches=((Desk, "prompt", without_answers_room),),
        killed_by=(haystacks.text_fills_the_prompt_to_the_last_token, haystacks.one_more_item_would_not_fit),
    ),
    Mutant(
        name="separators stand twice",
        patches=((Desk, "prompt", another_separator),),
        killed_by=(haystacks.prompts_are_as_published,),
    ),
    Mutant(
        name="a line is missing",
        patches=((needles, "noise", one_line_less),),
        killed_by=(haystacks.one_more_item_would_not_fit,),
    ),
    Mutant(
        name="a needle is missing",
        patches=((needles, "alike", one_needle_less),),
        killed_by=(haystacks.one_more_item_would_not_fit,),
    ),
    Mutant(
        name="numbers cost too much",
        patches=((lists, "cost", dear),),
        killed_by=(haystacks.one_more_item_would_not_fit,),
    ),
    Mutant(
        name="one answer stands for all",
        patches=((Desk, "conversation", first_answer_alone),),
        killed_by=(
            haystacks.keys_have_the_values_that_are_the_answers,
            haystacks.chains_lead_to_the_value,
            haystacks.words_that_are_asked_for_are_the_most_common,
        ),
    ),
    Mutant(
        name="depths are half",
        patches=((Desk, "conversation", shallow),),
        killed_by=(
            haystacks.needles_stand_where_their_depth_says,
            haystacks.documents_are_numbered_and_hold_what_is_asked_for,
        ),
    ),
    Mutant(
        name="the chain breaks",
        patches=((chains, "assignments", broken_chain),),
        killed_by=(haystacks.chains_lead_to_the_value,),
    ),
    Mutant(
        name="other words are repeated",
        patches=((lists, "word_list", turned_around),),
        killed_by=(haystacks.words_that_are_asked_for_are_the_most_common,),
    ),
    Mutant(
        name="other coded words are frequent",
        patches=((lists, "zipf", even),),
        killed_by=(haystacks.words_that_are_asked_for_are_the_most_common,),
    ),
    Mutant(
        name="documents have one number",
        patches=((documents, "heading", always_the_first),),
        killed_by=(haystacks.documents_are_numbered_and_hold_what_is_asked_for,),
    ),
    Mutant(
        name="needed documents are left out",
        patches=((documents, "read", needed_left_out),),
        killed_by=(haystacks.documents_are_numbered_and_hold_what_is_asked_for,),
    ),
    Mutant(
        name="a marked key has another's value",
        patches=((marks, "pairs_alone", other_value),),
        killed_by=(haystacks.marked_keys_have_the_values_that_are_the_answers,),
    ),
    Mutant(
        name="marks stand in text alone",
        patches=((marks, "hidden_in", text_alone),),
        killed_by=(haystacks.marked_keys_have_the_values_that_are_the_answers,),
    ),
    Mutant(
        name="marked contexts are short",
        patches=((RecallTasks, "key_value", one_token_short),),
        killed_by=(haystacks.text_fills_the_prompt_to_the_last_token,),
    ),
    Mutant(
        name="recall's answers are another sample's",
        patches=((Recall, "conversations", other_references),),
        killed_by=(haystacks.recall_asks_what_its_samples_do,),
    ),
)
