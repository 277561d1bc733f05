"""What is answered through the cache equals a stock model's own choices over the whole conversation."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from kvbench.api import strategy
from kvbench.quality.conversing import Answer, batches, converse, end_ids
from kvbench.strategies.base import CacheStrategy
from kvbench.workloads.asked import Conversation, Turn
from tests.quality.test_evaluate import arm, scaled

FIRST = 5  # of the ids that have a letter


class Letters:
    """Writes an id as one letter; as a tokenizer it would end nothing."""

    eos_token_id = None

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return a letter per id."""
        return "".join(chr(0x4E00 + token) for token in ids)


def drawn(seed: int, tokens: int) -> tuple[int, ...]:
    """Return random ids."""
    return tuple(torch.randint(FIRST, 200, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist())


def conversation(seed: int, *rooms: int, until: tuple[str, ...] = ()) -> Conversation:
    """Return one with as many turns as there are rooms for answers."""
    turns = tuple(
        Turn(question=drawn(100 * seed + index, 3), references=("",), new_tokens=room, until=until)
        for index, room in enumerate(rooms)
    )
    return Conversation(task="talk", context=drawn(seed, 40), turns=turns, metric="exact")


def greedy(model: nn.Module, ids: Sequence[int], room: int) -> list[int]:
    """Return a stock model's choices, every one from a pass over everything before it."""
    made: list[int] = []
    for _ in range(room):
        logits = model(torch.tensor([[*ids, *made]]), use_cache=False).logits
        made.append(int(logits[0, -1].argmax()))
    return made


def said(
    built: CacheStrategy, *talks: Conversation, aware: bool = False, ends: int | Sequence[int] | None = None
) -> list[list[Answer]]:
    """Return what a strategy answers where these tokens end an answer."""
    mine = arm(built)
    mine.model.generation_config.eos_token_id = ends  # type: ignore[union-attr]
    with torch.no_grad():
        return converse(mine, talks, question_in_cache=aware, decoder=Letters())


@pytest.fixture(scope="module")
def stock() -> nn.Module:
    """The same model with its own attention."""
    return scaled("sdpa").model


@pytest.mark.parametrize("aware", [False, True])
def test_answers_are_the_models_own_choices_after_the_question(stock: nn.Module, aware: bool) -> None:
    talks = [conversation(seed, 6) for seed in (1, 2, 3)]
    answers = said(strategy("baseline"), *talks, aware=aware)
    for talk, (answer,) in zip(talks, answers, strict=True):
        question = talk.turns[0].question
        expected = greedy(stock, [*talk.context, *question, *(question if aware else ())], 6)
        assert (answer.tokens, answer.text) == (expected, Letters().decode(expected))
        assert not answer.is_ended


def test_every_answer_stays_in_the_cache_to_its_last_token(stock: nn.Module) -> None:
    talk = conversation(4, 5, 1, 4)
    ids = list(talk.context)
    for turn, answer in zip(talk.turns, said(strategy("baseline"), talk)[0], strict=True):
        ids += turn.question
        assert answer.tokens == greedy(stock, ids, turn.new_tokens)
        ids += answer.tokens


def test_what_ends_an_answer_is_neither_part_of_it_nor_read(stock: nn.Module) -> None:
    talk = conversation(5, 6, 6)
    ids = [*talk.context, *talk.turns[0].question]
    free = greedy(stock, ids, 6)
    at = next(index for index in range(1, 6) if free[index] not in free[:index])
    expected = greedy(stock, [*ids, *free[:at], *talk.turns[1].question], 6)
    first, second = said(strategy("baseline"), talk, ends=[free[at]])[0]
    assert (first.tokens, first.is_ended) == (free[:at], True)
    assert second.tokens == [token for token in expected if token != free[at]][: len(second.tokens)]
    assert second.tokens == expected[: len(second.tokens)]
    letter = Letters().decode([free[at]])
    talk = conversation(5, 6, 6, until=("never", letter))
    first, second = said(strategy("baseline"), talk)[0]
    assert (first.text, first.is_ended) == (Letters().decode(free[:at]), True)
    assert second.text == Letters().decode(expected).partition(letter)[0]


def test_one_row_that_has_ended_leaves_the_others_as_they_are(stock: nn.Module) -> None:
    talks = [conversation(seed, 6) for seed in (6, 7)]
    free = [greedy(stock, [*talk.context, *talk.turns[0].question], 6) for talk in talks]
    end = next(token for token in free[0] if token not in free[1])
    answers = said(strategy("baseline"), *talks, ends=end)
    assert answers[0][0].tokens == free[0][: free[0].index(end)]
    assert answers[1][0].tokens == free[1]


@pytest.mark.parametrize("name", ["h2o", "snapkv", "knorm", "attention_sink", "random_eviction"])
def test_a_budget_of_everything_answers_as_the_full_cache_does(name: str) -> None:
    talks = [conversation(seed, 8) for seed in (8, 9)]
    whole = said(strategy(name, budget={"amount": 60, "unit": "tokens"}), *talks)
    assert [one.tokens for (one,) in whole] == [one.tokens for (one,) in said(strategy("baseline"), *talks)]


def test_answers_come_out_of_the_compressed_cache() -> None:
    talks = [conversation(seed, 8) for seed in range(10, 16)]
    small = said(strategy("sliding_window", budget={"amount": 4, "unit": "tokens"}), *talks)
    assert [one.tokens for (one,) in small] != [one.tokens for (one,) in said(strategy("baseline"), *talks)]


def test_batches_are_of_one_length_and_leave_nobody_out() -> None:
    talks = [conversation(seed, 2 if seed % 3 else 4) for seed in range(10)]
    talks += [conversation(seed, 2, 2) for seed in range(10, 13)]
    found = batches(talks, 4)
    assert sorted(number for numbers in found for number in numbers) == list(range(13))
    assert max(map(len, found)) == 4
    for numbers in found:
        assert len({(len(talks[n].context), talks[n].turns[0].new_tokens, len(talks[n].turns)) for n in numbers}) == 1
        assert len(numbers) == 1 or len(talks[numbers[0]].turns) == 1


def test_ends_are_the_models_or_else_the_tokenizers(stock: nn.Module) -> None:
    class Ends:
        eos_token_id = 3

    for setting, expected in ((None, {3}), (4, {4}), ([4, 5], {4, 5})):
        stock.generation_config.eos_token_id = setting  # type: ignore[union-attr]
        assert end_ids(stock, Ends()) == expected
    stock.generation_config.eos_token_id = None  # type: ignore[union-attr]
    assert end_ids(stock, Letters()) == set()
