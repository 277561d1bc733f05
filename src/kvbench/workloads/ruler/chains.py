"""RULER's variable tracking (vt): a chain of assignments among sentences that repeat, after one that is solved.

Source: PUBLISHED["source"], variable_tracking.py.
Deviates: each sample has as many sentences as fit it; the solved example is drawn anew for each.
"""

from __future__ import annotations

import string
from itertools import chain

from kvbench.workloads.asked import Conversation
from kvbench.workloads.composing import woven
from kvbench.workloads.ruler.desk import PUBLISHED, Desk

VT = PUBLISHED["vt"]


def chains(desk: Desk) -> Conversation:
    """Return a sample: which variables have this value?"""
    names, value, lines = assignments(desk, VT["letters"], "")
    others, other, solved = assignments(desk, VT["example"]["letters"], value)
    said = {"query": value, "count": len(names)}
    prompt = desk.prompt("chain", "\n", example=example(desk, others, other, solved), **said)
    repeated, hidden = desk.ids(f"\n{PUBLISHED['noise']}"), [desk.ids(f"\n{line}") for line in lines]
    count = (prompt.room - sum(map(len, hidden))) // len(repeated)
    if count < len(hidden):
        raise desk.short("as many other lines as assignments")
    places = sorted(desk.rng.sample(range(count), len(hidden)))
    body = list(chain.from_iterable(woven([repeated] * count, [[line] for line in hidden], places)))
    return desk.conversation(prompt, body, names, told=[*names, value], depth=None)


def assignments(desk: Desk, letters: int, taken: str) -> tuple[list[str], str, list[str]]:
    """Return different names, the value that all of them have, and the lines that say so.

    Args:
        desk: the task's.
        letters: of a name.
        taken: value that is another's.
    """
    names: dict[str, None] = {}
    while len(names) < VT["hops"] + 1:
        names[desk.name(letters, string.ascii_uppercase)] = None
    value = next(value for value in iter(lambda: str(desk.rng.randrange(10000, 99999)), "") if value != taken)
    first, *later = names
    said, lines = PUBLISHED["assignment"], [PUBLISHED["assignment"]["value"].format(name=first, value=value)]
    lines += [said["name"].format(name=name, before=before) for before, name in zip(names, later, strict=False)]
    return list(names), value, lines


def example(desk: Desk, names: list[str], value: str, lines: list[str]) -> str:
    """Return a prompt with its answer, of about the published length."""
    said = {"query": value, "count": len(names)}
    empty = len(desk.ids(desk.text("chain", "\n".join(lines), **said)))
    fits = (VT["example"]["tokens"] - empty) // len(desk.ids(f"\n{PUBLISHED['noise']}"))
    count = max(VT["example"]["least_lines"], fits)
    places = sorted(desk.rng.sample(range(count), len(lines)))
    context = "\n".join(woven([PUBLISHED["noise"]] * count, [[line] for line in lines], places))
    return f"{desk.text('chain', context, **said)} {' '.join(names)}\n\n"
