"""Merging in plain loops: entries are objects in lists, one KV head and one token at a time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvbench.strategies.selection.lots import PRIME, lots


@dataclass(kw_only=True)
class Entry:
    """What is held of one token, or of many.

    Args:
        position: of the token; -2 for many.
        key: [D].
        value: [D].
        score: how much it matters.
        number: tokens it counts as; 0 for none.
    """

    position: int
    key: Tensor
    value: Tensor
    score: float = 0.0
    number: float = 1.0


@dataclass(kw_only=True)
class Head:
    """What one KV head holds, and what it remembers of entries that left.

    Args:
        index: of the KV head.
        layer: of the model.
        entries: of single tokens, in order of position.
        reserved: entries that stand for many.
        gone: entries that left, as they were.
        notes: whatever a way of merging has to remember.
    """

    index: int
    layer: int
    entries: list[Entry] = field(default_factory=list)
    reserved: list[Entry] = field(default_factory=list)
    gone: list[Entry] = field(default_factory=list)
    notes: dict[str, float] = field(default_factory=dict)

    @property
    def all(self) -> list[Entry]:
        """Everything attention reads."""
        return [entry for entry in self.reserved + self.entries if entry.number > 0]


Merge = Callable[[Head, list[Entry]], None]


def cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine of two vectors."""
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def drop(head: Head, leaving: list[Entry]) -> None:
    """Forget them."""


def summary(mode: str) -> Merge:
    """Return the merge into one mean or sum of all that ever left."""

    def merge(head: Head, leaving: list[Entry]) -> None:
        head.gone += leaving
        if not head.gone:
            return
        parts = len(head.gone) if mode == "mean" else 1
        head.reserved = [
            Entry(
                position=-2,
                key=sum((e.key for e in head.gone), torch.zeros(())) / parts,
                value=sum((e.value for e in head.gone), torch.zeros(())) / parts,
                number=float(parts),
            )
        ]

    return merge


def nearest(weights: str, threshold: str, memory: float) -> Merge:
    """Return the merge into the kept entry of the most similar key."""

    def merge(head: Head, leaving: list[Entry]) -> None:
        if not leaving:
            return
        found = []
        for gone in leaving:
            similar = [cosine(gone.key, kept.key) for kept in head.entries]
            found.append((max(similar), similar.index(max(similar)), gone))
        if threshold == "mean":
            mean = sum(similarity for similarity, _, _ in found) / len(found)
            old = head.notes.get("threshold")
            head.notes["threshold"] = mean if old is None else memory * old + (1 - memory) * mean
            found = [each for each in found if each[0] >= head.notes["threshold"]]
        for index, kept in enumerate(head.entries):
            mine = [(similarity, gone) for similarity, target, gone in found if target == index]
            if mine:
                kept.key, kept.value = (_combined(weights, name, kept, mine) for name in ("key", "value"))

    return merge


def _combined(weights: str, name: str, kept: Entry, merged: list[tuple[float, Entry]]) -> Tensor:
    own: Tensor = getattr(kept, name)
    others: list[tuple[float, Tensor]] = [(similarity, getattr(gone, name)) for similarity, gone in merged]
    if weights == "exponential":
        total = math.e + sum(math.exp(similarity) for similarity, _ in others)
        return own * (math.e / total) + sum((math.exp(s) / total * other for s, other in others), torch.zeros(()))
    parts = {
        "similarity": [similarity * other for similarity, other in others],
        "mean": [other for _, other in others],
        "pivot": [(own + other) / 2 for _, other in others],
    }[weights]
    return torch.stack([own, *parts]).mean(dim=0)


def following(num_following: int, seed: int) -> Merge:
    """Return the spreading of values over the entries that follow."""

    def merge(head: Head, leaving: list[Entry]) -> None:
        for gone in leaving:
            targets = [kept for kept in head.entries if kept.position > gone.position][:num_following]
            if not targets:
                continue
            mean = sum(kept.score for kept in targets) / len(targets)
            lot = int(lots(seed, head.layer, torch.tensor(head.index), torch.tensor(gone.position))) / PRIME
            if lot < min(1.0, gone.score / mean):
                for kept in targets:
                    kept.value = kept.value + gone.value / len(targets)

    return merge


def runs(threshold: float) -> Merge:
    """Return the merge of runs of like neighbours into their best entry that stays."""

    def merge(head: Head, leaving: list[Entry]) -> None:
        if head.notes.setdefault("times", 0.0) > 0:  # at the end of the prompt only
            return
        head.notes["times"] = 1.0
        everything = sorted(head.entries + leaving, key=lambda entry: entry.position)
        groups = [[everything[0]]]
        for before, entry in itertools.pairwise(everything):
            if cosine(before.key, entry.key) > threshold:
                groups[-1].append(entry)
            else:
                groups.append([entry])
        staying = {entry.position for entry in head.entries}
        for group in groups:
            kept = [entry for entry in group if entry.position in staying]
            gone = [entry for entry in group if entry.position not in staying]
            if kept and gone:
                _merge_run(max(kept, key=lambda entry: (entry.score, entry.position)), gone)

    return merge


def _merge_run(pivot: Entry, gone: list[Entry]) -> None:
    distances = [math.dist(pivot.key.tolist(), entry.key.tolist()) for entry in gone]
    sigma = sum(distances) / (len(gone) + 1) / math.sqrt(2)
    kernel = [math.exp(-(d**2) / (2 * sigma**2)) if sigma > 0 else 1.0 for d in distances]
    total = sum(kernel) + 1
    for name in ("key", "value"):
        mixed = getattr(pivot, name) / total
        for weight, entry in zip(kernel, gone, strict=True):
            mixed = mixed + getattr(entry, name) * (weight / total)
        setattr(pivot, name, mixed)


def residual(num_entries: int, compensation: float) -> Merge:
    """Return the merge into a few means."""

    def merge(head: Head, leaving: list[Entry]) -> None:
        if "begun" not in head.notes:
            head.notes["begun"] = 1.0
            head.reserved = [_nothing(head.entries[0]) for _ in range(num_entries)]
            counts = [0.0] * num_entries
            joins = [rank * num_entries // len(leaving) for rank in range(len(leaving))]
        else:
            counts = [head.notes[str(index)] for index in range(num_entries)]
            joins = []
            for gone in leaving:
                products = [float(gone.key @ mean.key) for mean in head.reserved]
                joins.append(counts.index(0.0) if 0.0 in counts else products.index(max(products)))
        for index, gone in zip(joins, leaving, strict=True):
            mean, before = head.reserved[index], counts[index]
            mean.key = (mean.key * before + gone.key) / (before + 1)
            mean.value = (mean.value * before + gone.value) / (before + 1)
            counts[index] = before + 1
            mean.number = counts[index] ** compensation
        head.notes |= {str(index): count for index, count in enumerate(counts)}

    return merge


def _nothing(like: Entry) -> Entry:
    return Entry(position=-2, key=torch.zeros_like(like.key), value=torch.zeros_like(like.value), number=0.0)


MERGES: Mapping[str, Callable[..., Merge]] = {
    "summary": summary,
    "nearest": nearest,
    "following": following,
    "runs": runs,
    "residual": residual,
}
