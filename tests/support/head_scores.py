"""Files of head scores for the tests' random models, in a folder that goes with the process."""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from kvbench.calibrated import fingerprint
from kvbench.models.view import view_of
from kvbench.strategies.budget.scores import HeadScores
from kvbench.types import ModelView
from tests.support.measured import temporary
from tests.support.models import LAYERS, MAIN, model

NAMES: Mapping[str, tuple[str, ...]] = {
    "retrieval": ("retrieval",),
    "gate": ("gate",),
    "repetition": ("echo", "induction"),
}


@functools.cache
def folder() -> Path:
    """Return a folder with scores of every kind for the main models, drawn by lot; no two heads have the same."""
    path = temporary("heads")
    for name in MAIN:
        heads = view_of(model(name)).layers[0].kv_heads
        for kind, titles in NAMES.items():
            rng = random.Random(f"{name} {kind}")
            values = {title: rng.sample(range(1, 100), LAYERS * heads) for title in titles}
            tables = {
                title: [[value / 100 for value in drawn[at : at + heads]] for at in range(0, len(drawn), heads)]
                for title, drawn in values.items()
            }
            write(path, name, kind, tables)
    return path


def write(
    path: Path, name: str, kind: str, tables: Mapping[str, Sequence[Sequence[float]]], view: ModelView | None = None
) -> Path:
    """Write scores of the heads of a model, or of what a view describes, to a folder; return the file."""
    weights = fingerprint(view or view_of(model(name)))
    assert weights is not None
    made = HeadScores(
        kind=kind,
        model=name,
        revision="random",
        weights=weights,
        seed=0,
        samples=1,
        tokens=1,
        scores={title: tuple(map(tuple, table)) for title, table in tables.items()},
    )
    made.write(path / made.file_name(kind))
    return path / made.file_name(kind)
