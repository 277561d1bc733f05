"""How each method is set so that it fits the tests' short prompts, and what holds for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One method in the tests, where a prompt has 24 tokens, 12 follow and 12 entries stay.

    Args:
        overrides: as on the command line without "strategy.": protected numbers, windows and the like, made small.
        has_budget: whether budget.unit and budget.amount mean something to it.
        merges: whether kept entries change, so that what is held is no mask.
        same_in_chunks: whether a prompt in pieces gives what the prompt at once gives.
        data_dependent: whether its bytes depend on the data, so that the closed form is their upper bound.
        exact_when_full: whether a budget above the length is the full cache bit for bit.
        moves_positions: whether new tokens are read at other positions than their own.
        any_loop: whether a loop that knows nothing of kvbench can read its prompt.
        turns_keys: whether it refuses models whose keys are not rotated.
        waits: whether a decode step waits for the host now and then.
        forgets: whether layers hold nothing of the prompt.
        keeps: whether they hold anything at all.
        like: a method of the same parts with other numbers, whose generic oracles serve this one as well; "" for none.
    """

    overrides: tuple[str, ...] = ()
    has_budget: bool = True
    merges: bool = False
    same_in_chunks: bool = True
    data_dependent: bool = False
    exact_when_full: bool = True
    moves_positions: bool = False
    any_loop: bool = True
    turns_keys: bool = False
    waits: bool = False
    forgets: bool = False
    keeps: bool = True
    like: str = ""
