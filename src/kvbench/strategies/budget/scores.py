"""Scores of a model's heads, measured once by `kvbench calibrate` and kept in a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar, Self

from kvbench import calibrated
from kvbench.calibrated import Calibrated, command
from kvbench.types import ModelView

Table = tuple[tuple[float, ...], ...]  # per layer, per KV head


@dataclass(frozen=True, kw_only=True)
class HeadScores(Calibrated):
    """How much each KV head of a model does of something, as means over samples.

    Args:
        kind: what was measured.
        scores: by name, per layer and KV head, between 0 and 1.
    """

    holds: ClassVar[str] = "head scores"
    lacks: ClassVar[str] = "the heads of this model have no {kind} scores"
    key: ClassVar[str] = "strategy.budget.scores"

    kind: str
    scores: Mapping[str, Table]

    def __post_init__(self) -> None:
        """Refuse what are no scores."""
        for name, table in self.scores.items():
            values = [value for layer in table for value in layer]
            if not values or not all(math.isfinite(value) and 0 <= value <= 1 for value in values):
                raise ValueError(f"head scores {name!r} must be numbers between 0 and 1.")

    @classmethod
    def stem(cls, kind: str) -> str:
        """Return what names of files of a kind begin with."""
        return f"{super().stem(kind)}_{kind}"

    @classmethod
    def parsed(cls, read: dict[str, Any]) -> Self:
        """Return what a file holds."""
        tables = {str(name): tuple(map(_numbers, table)) for name, table in read.pop("scores").items()}
        return cls(scores=tables, **read)

    def misfit(self, kind: str, view: ModelView) -> str | None:
        """Return why these are other scores, or for other heads, than those asked for; or None."""
        if self.kind != kind:
            return f"holds {self.kind} scores; {kind} scores are needed: {command(kind, view)}"
        want = [layer.kv_heads for layer in view.layers]
        for name, table in self.scores.items():
            got = [len(layer) for layer in table]
            if got != want:
                return (
                    f"was made for another model: {name!r} has KV heads {got} per layer, this model has {want}. "
                    f"Run: {command(kind, view)}"
                )
        return None

    def drawn(self) -> list[str]:
        """Return one line per score and layer."""
        return [
            f"{name:10} layer {layer:2} {' '.join(f'{score:.3f}' for score in scores)}"
            for name, table in self.scores.items()
            for layer, scores in enumerate(table)
        ]


def find(kind: str, where: str, view: ModelView) -> HeadScores:
    """Return the scores of a model.

    Args:
        kind: what was measured.
        where: file, or folder of files; "" for the cache folder and what is shipped.
        view: of the model.

    Raises:
        ValueError: if there are none, with the command that makes them, or if they are another model's.
    """
    found = calibrated.find(HeadScores, where, view, kind=kind)
    return _any(kind, view) if found is None else found


def _numbers(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(map(float, values))


def _any(kind: str, view: ModelView) -> HeadScores:
    """Return scores for a model without weights, such that as many heads as there can be are above any number.

    All differ, and no head that is high in one is in another: how many entries the model holds is right, not where.
    """
    total = sum(layer.kv_heads for layer in view.layers)
    rising = [(rank + 1) / total for rank in range(total)]
    scores = {"retrieval": rising, "gate": rising, "induction": rising, "echo": rising[::-1]}
    tables = {name: _per_layer(values, view) for name, values in scores.items()}
    return HeadScores(kind=kind, model="", revision="", weights="", seed=0, samples=0, tokens=0, scores=tables)


def _per_layer(values: Sequence[float], view: ModelView) -> Table:
    ends = list(accumulate(layer.kv_heads for layer in view.layers))
    return tuple(tuple(values[start:end]) for start, end in zip([0, *ends], ends, strict=False))
