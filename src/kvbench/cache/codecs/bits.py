"""How many bits the keys and values of each layer get: as many as their rounding is felt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any, ClassVar, Self

from kvbench import calibrated
from kvbench.calibrated import Calibrated, command
from kvbench.types import ModelView

KIND = "bits"
BITS = (2, 4, 8)

Rows = tuple[tuple[float, ...], ...]  # per layer, per bits
Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class BitErrors(Calibrated):
    """How far a model's predictions move when one side of one layer is rounded.

    Args:
        group: numbers that shared a scale.
        errors: divergence from the full model's predictions, in nats per token, for each of `BITS`: of keys that share
            scales along "tokens" or "channels", and of "values".
    """

    holds: ClassVar[str] = "bit errors"
    lacks: ClassVar[str] = "the layers of this model have no errors by bits"
    key: ClassVar[str] = "strategy.codec.errors"

    group: int
    errors: Mapping[str, Rows]

    def __post_init__(self) -> None:
        """Refuse what are no errors."""
        rows = [row for table in self.errors.values() for row in table]
        if self.errors.keys() != {"tokens", "channels", "values"} or not all(map(_are_errors, rows)):
            raise ValueError(f"bit errors must be {len(BITS)} numbers of at least 0 for each layer and side.")

    @classmethod
    def parsed(cls, read: dict[str, Any]) -> Self:
        """Return what a file holds."""
        tables = read.pop("errors").items()
        return cls(errors={str(name): tuple(tuple(map(float, row)) for row in table) for name, table in tables}, **read)

    def misfit(self, kind: str, view: ModelView) -> str | None:
        """Return why layers differ from the model's, or None."""
        got = {len(table) for table in self.errors.values()}
        if got == {len(view.layers)}:
            return None
        return f"has errors for {sorted(got)} layers, this model has {len(view.layers)}. Run: {command(kind, view)}"

    def drawn(self) -> list[str]:
        """Return one line per layer and side."""
        about = {"tokens": "keys by tokens", "channels": "keys by channels", "values": "values"}
        return [
            f"{about[name]:16} layer {layer:2}  "
            + "  ".join(f"{bits} bits {error:.5f}" for bits, error in zip(BITS, row, strict=True))
            for name, table in self.errors.items()
            for layer, row in enumerate(table)
        ]


def _are_errors(row: Sequence[float]) -> bool:
    return len(row) == len(BITS) and all(math.isfinite(error) and error >= 0 for error in row)


@lru_cache(maxsize=8)
def bits_of_layers(view: ModelView, where: str, along: str, mean: float) -> tuple[Pair, ...]:
    """Return the bits of keys and values of each layer.

    Args:
        view: of the model; without weights, layers are taken to be alike.
        where: file, or folder of files; "" for the cache folder and what is shipped.
        along: what keys share scales along.
        mean: bits that a number of keys or values may have, over all layers.

    Raises:
        ValueError: if there are no errors, with the command that makes them, or if they are another model's.
    """
    found = calibrated.find(BitErrors, where, view, kind=KIND)
    if found is None:
        alike = [[2.0**-bits for bits in BITS]] * len(view.layers)
        return shared_out(alike, alike, mean)
    return shared_out(found.errors[along], found.errors["values"], mean)


def shared_out(keys: Sequence[Sequence[float]], values: Sequence[Sequence[float]], mean: float) -> tuple[Pair, ...]:
    """Return the bits of keys and values of each layer with which errors add up to the least there can be.

    Args:
        keys: errors of each layer, for each of `BITS`.
        values: as keys.
        mean: bits of a number at most, over layers, keys and values.
    """
    most = math.floor(2 * mean * len(keys))
    best: dict[int, tuple[float, tuple[Pair, ...]]] = {0: (0.0, ())}  # by bits used
    for of_keys, of_values in zip(keys, values, strict=True):
        longer: dict[int, tuple[float, tuple[Pair, ...]]] = {}
        for used, (error, chosen) in best.items():
            for (key, key_error), (value, value_error) in product(
                zip(BITS, of_keys, strict=True), zip(BITS, of_values, strict=True)
            ):
                total, added = used + key + value, error + key_error + value_error
                if total <= most and (total not in longer or added < longer[total][0]):
                    longer[total] = (added, (*chosen, (key, value)))
        best = longer
    return min(best.items(), key=lambda item: (item[1][0], item[0]))[1][1]
