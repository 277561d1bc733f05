"""What the codes of a model's keys and values stand for, measured once by `kvbench calibrate codebooks`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from kvbench import calibrated
from kvbench.cache.codecs.nonuniform import between
from kvbench.calibrated import Calibrated, command
from kvbench.types import ModelView

KIND = "codebooks"
BITS = (2, 3, 4)

Rows = tuple[tuple[float, ...], ...]  # per layer


@dataclass(frozen=True, kw_only=True)
class Codebooks(Calibrated):
    """Of each layer: where the numbers of a key's channel lie, a table for keys and one for values.

    Args:
        outliers: share of a channel's numbers that lie outside.
        skipped: first tokens of each text, which do not count.
        lower: of each channel, over all heads, of keys as they were before rotation.
        upper: as lower.
        keys: tables by bits, ascending, for keys that are scaled so that lower is -1 and upper 1.
        values: tables by bits, for values whose least number is -1, and the largest 1, but for the token's outliers.
    """

    holds: ClassVar[str] = "codebooks"
    lacks: ClassVar[str] = "the keys and values of this model have no codebooks"
    key: ClassVar[str] = "strategy.codec.codebooks"

    outliers: float
    skipped: int
    lower: Rows
    upper: Rows
    keys: Mapping[str, Rows]
    values: Mapping[str, Rows]

    def __post_init__(self) -> None:
        """Refuse what are no thresholds, and tables that do not rise."""
        limits = [pair for rows in zip(self.lower, self.upper, strict=True) for pair in zip(*rows, strict=True)]
        tables = [
            (2 ** int(bits), row) for side in (self.keys, self.values) for bits, rows in side.items() for row in rows
        ]
        if not all(math.isfinite(low) and math.isfinite(high) and low <= high for low, high in limits):
            raise ValueError("codebooks need lower numbers that are at most the upper ones.")
        if not all(len(row) == size and all(a <= b for a, b in pairwise(row)) for size, row in tables):
            raise ValueError("codebooks need 2^bits numbers in each table, in rising order.")

    @classmethod
    def parsed(cls, read: dict[str, Any]) -> Self:
        """Return what a file holds."""
        made: dict[str, Any] = {name: _rows(read.pop(name)) for name in ("lower", "upper")}
        for name in ("keys", "values"):
            made[name] = {bits: _rows(rows) for bits, rows in read.pop(name).items()}
        return cls(**made, **read)

    def misfit(self, kind: str, view: ModelView) -> str | None:
        """Return why channels differ from the model's, or None."""
        want, got = [layer.kv_heads * layer.key_dim for layer in view.layers], [len(row) for row in self.lower]
        if got == want:
            return None
        return (
            f"has codebooks for {len(got)} layers with {sorted(set(got))} channels of keys, this model has {len(want)} "
            f"with {sorted(set(want))}. Run: {command(kind, view)}"
        )

    def drawn(self) -> list[str]:
        """Return one line per layer, side and bits."""
        return [
            f"layer {layer:2} {name:6} {bits} bits {' '.join(f'{number:6.3f}' for number in row)}"
            for name, side in (("keys", self.keys), ("values", self.values))
            for bits, rows in side.items()
            for layer, row in enumerate(rows)
        ]


def _rows(read: Sequence[Sequence[Any]]) -> Rows:
    return tuple(tuple(map(float, row)) for row in read)


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Of one side of a layer.

    Args:
        levels: what codes stand for, before they are scaled, float32 [2^bits].
        scale: of each channel, float16 [G, D]; None where each token has its own.
        low: as scale.
    """

    levels: Tensor
    scale: Tensor | None
    low: Tensor | None

    def tensors(self) -> tuple[Tensor, ...]:
        """Return everything held."""
        return tuple(t for t in (self.levels, self.scale, self.low) if t is not None)


@lru_cache(maxsize=4)
def tables(view: ModelView, where: str, bits: int) -> tuple[tuple[Table, Table], ...]:
    """Return the tables of keys and values of each layer; evenly spaced ones for a model without weights.

    Args:
        view: of the model.
        where: file, or folder of files; "" for the cache folder and what is shipped.
        bits: of a code.

    Raises:
        ValueError: if there are none, with the command that makes them, or if they are another model's.
    """
    found = calibrated.find(Codebooks, where, view, kind=KIND)
    made = []
    for at, layer in enumerate(view.layers):
        size = (layer.kv_heads, layer.key_dim)
        if found is None:
            even, upper = torch.linspace(-1, 1, 2**bits, device=view.device), torch.ones(size, device=view.device)
            keys, values, lower = even, even, -upper
        else:
            rows = (found.keys[str(bits)], found.values[str(bits)], found.lower, found.upper)
            keys, values, lower, upper = (torch.tensor(row[at], device=view.device) for row in rows)
        scale, low = between(lower.view(size), upper.view(size))
        made.append((Table(levels=keys, scale=scale, low=low), Table(levels=values, scale=None, low=None)))
    return tuple(made)
