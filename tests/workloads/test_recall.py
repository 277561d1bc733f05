"""Recall samples are exact in length, answerable, and the same for the same seed."""

from __future__ import annotations

import random

import pytest
from transformers import AutoTokenizer

from kvbench.models.spec import TINY
from kvbench.types import Sample
from kvbench.workloads.recall import RecallTasks, draw
from tests.mutants import recall as mutants


@pytest.fixture(scope="module")
def tasks() -> RecallTasks:
    """Recall tasks on the embedded tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    filler = tokenizer((TINY / "held_out.txt").read_text(), add_special_tokens=False).input_ids
    return RecallTasks.build(tokenizer, filler)


def check_answerable(tasks: RecallTasks, sample: Sample) -> None:
    """Fail unless the context tells the answer to the question, once."""
    context, question, answer = sample.spans
    ids = sample.ids
    asked, told = ids[question.start : question.stop], ids[answer.start : answer.stop]
    is_pair = asked[: len(tasks.question_mark)] == tasks.question_mark
    lead = (*tasks.pair_mark, *asked[len(tasks.question_mark) :]) if is_pair else tasks.passkey_lead
    needle = (*lead, *told)
    places = [at for at in range(context.stop) if ids[at : at + len(lead)] == lead]
    assert len(places) == 1, "the question is about one place"
    assert ids[places[0] : places[0] + len(needle)] == needle, "and that place holds the answer"


@pytest.mark.parametrize("task", ["key_value", "passkey"])
@pytest.mark.parametrize("in_cache", [False, True])
def test_prompt_has_exactly_the_tokens_asked_for(tasks: RecallTasks, task: str, in_cache: bool) -> None:
    for sample in draw(tasks, task, 20, 300, 8, seed=1, question_in_cache=in_cache):
        context, question, answer = sample.spans
        assert (question.stop if in_cache else context.stop) == 300
        assert answer.stop == len(sample.ids)
        assert sample.ids[: len(tasks.prefix)] == tasks.prefix


@pytest.mark.parametrize("task", ["key_value", "passkey"])
def test_context_tells_the_answer_once(tasks: RecallTasks, task: str) -> None:
    for sample in draw(tasks, task, 50, 300, 8, seed=2, question_in_cache=False):
        check_answerable(tasks, sample)


def test_check_catches_answers_that_are_not_told(tasks: RecallTasks) -> None:
    sample = draw(tasks, "key_value", 1, 300, 8, seed=2, question_in_cache=False)[0]
    with pytest.raises(AssertionError):
        check_answerable(tasks, mutants.with_other_answer(sample))


def test_same_seed_same_samples(tasks: RecallTasks) -> None:
    first, again, other = (
        draw(tasks, "key_value", 5, 200, 4, seed=seed, question_in_cache=False) for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_keys_and_values_are_disjoint_single_tokens(tasks: RecallTasks) -> None:
    assert not set(tasks.keys) & set(tasks.values)
    assert len(tasks.keys) == len(set(tasks.keys)) >= 64


def test_context_too_small_for_its_pairs_names_the_key(tasks: RecallTasks) -> None:
    with pytest.raises(ValueError, match=r"workload\.prompt_tokens or workload\.pairs"):
        tasks.key_value(random.Random(0), context_tokens=30, pairs=16)


class Poor:
    """A tokenizer with next to no words."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return nothing."""
        return []

    def get_vocab(self) -> dict[str, int]:
        """Return one word."""
        return {"\u0120word": 0}


def test_tokenizer_without_words_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 128 one-token words"):
        RecallTasks.build(Poor(), [1, 2, 3])
