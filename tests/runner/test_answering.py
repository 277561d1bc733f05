"""What is refused before anything is asked, and what is not compared."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kvbench import answering
from kvbench.api import strategy
from kvbench.workloads.asked import Conversation, Turn
from tests.quality.test_evaluate import arm


def talk(context: int, *rooms: int) -> Conversation:
    """Return a conversation with questions of three tokens."""
    turns = tuple(Turn(question=(5, 6, 7), references=("",), new_tokens=room) for room in rooms)
    return Conversation(task="talk", context=(9,) * context, turns=turns, metric="exact")


def bench(*, positions: int = 0, aware: bool = False, full: Any = None) -> Any:
    """Return as much of a bench as is looked at."""
    workload = SimpleNamespace(question_in_cache=aware, batch_size=2)
    one = SimpleNamespace(view=SimpleNamespace(max_positions=positions))
    job = SimpleNamespace(workload=workload, on_its_network=full)
    return SimpleNamespace(job=job, on={"strategy": one}, arms={"strategy": arm(full) if full else None})


@pytest.mark.parametrize(
    ("positions", "aware", "is_refused"), [(56, False, False), (55, False, True), (56, True, True)]
)
def test_a_conversation_that_no_position_is_left_for_names_the_key(
    positions: int, aware: bool, is_refused: bool
) -> None:
    asked = [talk(10, 4), talk(40, 5, 5)]  # 40 + 3 + 5 + 3 + 5
    if not is_refused:
        answering._check_lengths(bench(positions=positions, aware=aware), "strategy", asked)
        return
    with pytest.raises(ValueError, match=rf"has up to 5[69] tokens.* at most {positions} .*workload\.prompt_tokens"):
        answering._check_lengths(bench(positions=positions, aware=aware), "strategy", asked)


def test_a_context_that_is_too_short_for_a_strategy_is_a_reason() -> None:
    full = strategy("h2o", budget={"amount": 0.1, "unit": "ratio"}, selector={"num_recent": 6})
    assert answering._refused(bench(full=full), "strategy", [talk(200, 1)]) is None
    reason = answering._refused(bench(full=full), "strategy", [talk(200, 1), talk(20, 1)])
    assert reason is not None
    assert "strategy.budget.amount" in reason


def test_networks_that_read_other_tokens_are_not_compared() -> None:
    asked = {"strategy": [talk(10, 1)], "baseline": [talk(11, 1)]}
    workload: Any = SimpleNamespace(reference="none")
    assert answering._compare(workload, "", asked, []) == {
        "score_verdict": "none",
        "score_reason": "the two networks do not read the same tokens",
    }


def test_a_turn_without_a_question_and_a_score_that_nobody_knows_are_refused() -> None:
    with pytest.raises(ValueError, match="needs a question of at least one token"):
        Turn(question=(), references=(), new_tokens=1)
    with pytest.raises(ValueError, match="needs a question of at least one token"):
        Turn(question=(1,), references=(), new_tokens=0)
    turn = Turn(question=(1,), references=(), new_tokens=1)
    with pytest.raises(ValueError, match="needs a context and at least one turn"):
        Conversation(task="talk", context=(), turns=(turn,), metric="exact")
    with pytest.raises(ValueError, match=r"talk is scored by 'taste'; metrics are .*contains_any"):
        Conversation(task="talk", context=(1,), turns=(turn,), metric="taste")
