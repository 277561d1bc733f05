"""RULER's needles: numbers and UUIDs for keys, hidden in text, in sentences that repeat, or among others of their kind.

Source: PUBLISHED["source"], niah.py.
Deviates: keys are pairs of the haystack's words, not of the wonderwords package's; text begins at any place and is not
    repeated; needles in it stand on lines of their own where their depth (one of the published 40) says, not at the end
    of a sentence; no number stands in a context twice. Each sample has as many whole lines as fit it, or text to the
    last token, where the published samples of a task all have as much as fits a first one.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

from kvbench.workloads.asked import Conversation
from kvbench.workloads.composing import found, woven
from kvbench.workloads.ruler.desk import PUBLISHED, Desk, Prompt

DEPTHS = tuple(round(100 * step / 39) / 100 for step in range(40))


def needles(desk: Desk) -> Conversation:
    """Return a sample of one of the tasks called niah."""
    kind = PUBLISHED["needles"][desk.task]
    keys = unique(desk, kind["keys"], kind["num_keys"])
    values = unique(desk, kind["values"], kind["num_keys"] * kind["num_values"])
    owned = {key: values[at :: len(keys)] for at, key in enumerate(keys)}
    lines = [line(kind, key, value) for key in keys for value in owned[key]]
    desk.rng.shuffle(lines)
    asked = desk.rng.sample(keys, kind["num_asked"])
    told = [value for key in asked for value in owned[key]]
    called = kind["values"] if len(told) > 1 else kind["values"].removesuffix("s")
    query = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])}, and {asked[-1]}"
    is_text = kind["haystack"] == "text"
    prompt = desk.prompt("needles" if len(told) > 1 else "needle", "" if is_text else "\n", kind=called, query=query)
    hidden = [desk.ids(f"\n{each}\n" if is_text else f"\n{each}") for each in lines]
    if is_text:
        body = in_text(desk, prompt, hidden)
    else:
        left = prompt.room - sum(map(len, hidden))
        others = noise(desk, left) if kind["haystack"] == "noise" else alike(desk, left, kind, told)
        body = among(desk, others, hidden)
    mine = [ids for ids, each in zip(hidden, lines, strict=True) if told[0] in each]
    depth = found(body, mine[0]) if len(told) == 1 else None
    return desk.conversation(prompt, body, told, told=[*asked, *told], depth=depth)


def unique(desk: Desk, kind: str, count: int) -> list[str]:
    """Return so many different keys or values."""
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        drawn[desk.fresh(kind)] = None
    return list(drawn)


def line(kind: dict[str, Any], key: str, value: str) -> str:
    """Return the sentence that gives a key a value."""
    return str(PUBLISHED["needle"]).format(kind=kind["values"], key=key, value=value)


def in_text(desk: Desk, prompt: Prompt, hidden: list[tuple[int, ...]]) -> list[int]:
    """Return text with needles at some of the published depths, as long as there is room."""
    count = prompt.room - sum(map(len, hidden))
    if count < 1:
        raise desk.short("the needles")
    places = sorted(round(depth * count) for depth in desk.rng.sample(DEPTHS, len(hidden)))
    return woven(desk.haystack.window(desk.rng, count), hidden, places)


def noise(desk: Desk, left: int) -> list[tuple[int, ...]]:
    """Return the sentences that repeat, as often as they fit in what is left of the prompt."""
    repeated = desk.ids(f"\n{PUBLISHED['noise']}")
    return [repeated] * max(0, left // len(repeated))


def alike(desk: Desk, left: int, kind: dict[str, Any], told: list[str]) -> list[tuple[int, ...]]:
    """Return as many other needles as fit in what is left of the prompt, each with a key and a value of its own."""
    lines: list[tuple[int, ...]] = []
    seen = set(told)
    while True:
        key, value = desk.fresh(kind["keys"]), desk.fresh(kind["values"])
        if {key, value} & seen:
            continue
        seen |= {key, value}
        other = desk.ids(f"\n{line(kind, key, value)}")
        if len(other) > left:
            return lines
        lines.append(other)
        left -= len(other)


def among(desk: Desk, others: list[tuple[int, ...]], hidden: list[tuple[int, ...]]) -> list[int]:
    """Return lines with needles before some of them."""
    if len(others) < len(hidden):
        raise desk.short("as many other lines as needles")
    places = sorted(desk.rng.sample(range(len(others)), len(hidden)))
    return list(chain.from_iterable(woven(others, [[each] for each in hidden], places)))
