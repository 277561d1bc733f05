"""How large keys, values and queries are, and along which directions; measured by `kvbench calibrate moments`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from kvbench import calibrated
from kvbench.calibrated import Calibrated, command
from kvbench.types import LayerShape, ModelView

KIND = "moments"
HEADS = 4  # neighbouring ones that are measured together, at most
ABOUT = {"model": str, "revision": str, "weights": str, "seed": int, "samples": int, "tokens": int}


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments(Calibrated):
    """Means over tokens, per layer.

    Args:
        keys: products of every two channels of a group of heads, end to end, of keys as they were before their bias was
            added and they were rotated, float32 [n, h x D, h x D].
        values: of values as they were before their bias was added, as the keys.
        queries: of queries as they were before they were rotated, a mean over the query heads of a KV head, float32
            [G, D, D].
        largest: magnitude of each channel of keys, bias and rotation included [G, D].
        gradients: squares of the gradients of the loss, summed over channels: of keys and of values [2].
    """

    holds: ClassVar[str] = "moments"
    lacks: ClassVar[str] = "the keys and values of this model have no moments"
    key: ClassVar[str] = "strategy.codec.moments"
    suffix: ClassVar[str] = ".safetensors"

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    queries: Sequence[Tensor]
    largest: Sequence[Tensor]
    gradients: Sequence[Tensor]

    def __post_init__(self) -> None:
        """Refuse what is no number."""
        if not all(each.isfinite().all() for each in self.tensors().values()):
            raise ValueError("moments must be finite numbers.")

    def tensors(self) -> Mapping[str, Tensor]:
        """Return what is measured, by the name it has in a file."""
        return {f"{name}.{at}": t for name in _MEASURED for at, t in enumerate(getattr(self, name))}

    @classmethod
    def read(cls, file: Path) -> Self:
        """Return what a file holds."""
        with file.open("rb"), safe_open(file, framework="pt") as opened:  # safe_open says less of what is no file
            names = list(opened.keys())
            return cls.parsed({**(opened.metadata() or {}), **{name: opened.get_tensor(name) for name in names}})

    @classmethod
    def parsed(cls, read: dict[str, Any]) -> Self:
        """Return what was read from a file."""
        about: dict[str, Any] = {name: kind(read[name]) for name, kind in ABOUT.items()}
        layers = range((len(read) - len(ABOUT)) // len(_MEASURED))
        about |= {name: tuple(read[f"{name}.{at}"] for at in layers) for name in _MEASURED}
        return cls(**about)

    def write(self, file: Path) -> None:
        """Write them as tensors, and what they were measured on as metadata."""
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(self.tensors()), file, metadata={name: str(getattr(self, name)) for name in ABOUT})

    def misfit(self, kind: str, view: ModelView) -> str | None:
        """Return why sizes differ from the model's, or None."""
        want = [
            (h := joined(layer, HEADS), layer.kv_heads // h, h * layer.key_dim, h * layer.value_dim)
            for layer in view.layers
        ]
        got = [
            (len(rows) // len(keys), len(keys), keys.shape[-1], values.shape[-1])
            for keys, values, rows in zip(self.keys, self.values, self.largest, strict=True)
        ]
        if got == want:
            return None
        return (
            f"has moments of {len(got)} layers with heads of a group, groups, and channels of keys and of values "
            f"{sorted(set(got))}, this model has {len(want)} with {sorted(set(want))}. Run: {command(kind, view)}"
        )

    def drawn(self) -> list[str]:
        """Return one line per layer: what of its numbers lies along a quarter of the directions, and its gradients."""
        return [
            f"layer {layer:3} along a quarter: keys {_quarter(self.keys[layer]):.3f} "
            f"values {_quarter(self.values[layer]):.3f}  gradients: keys {gradients[0]:.2e} values {gradients[1]:.2e}"
            for layer, gradients in enumerate(self.gradients)
        ]


_MEASURED = ("keys", "values", "queries", "largest", "gradients")


def find(where: str, view: ModelView) -> Moments | None:
    """Return the moments of a model, or None for a model without weights.

    Args:
        where: file, or folder of files; "" for the cache folder and what is shipped.
        view: of the model.

    Raises:
        ValueError: if there are none, with the command that makes them, or if they are another model's.
    """
    return calibrated.find(Moments, where, view, kind=KIND)


def joined(shape: LayerShape, most: int) -> int:
    """Return how many neighbouring heads a group has: as many of `HEADS` as divide what a layer has, or fewer."""
    largest = next(size for size in range(HEADS, 0, -1) if shape.kv_heads % size == 0)
    return next(size for size in range(min(most, largest), 0, -1) if largest % size == 0)


def refuse_groups(heads: int) -> None:
    """Refuse groups of so many heads, where these are not measured together.

    Raises:
        ValueError: if there are too few, or too many.
    """
    if not 1 <= heads <= HEADS:
        raise ValueError(f"strategy.codec.heads must be from 1 to {HEADS}; got {heads}.")


def blocks(moments: Tensor, size: int) -> Tensor:
    """Return the moments of smaller groups, of so many channels each."""
    per_group = moments.shape[-1] // size
    parts = moments.unflatten(2, (per_group, size)).unflatten(1, (per_group, size))  # [n, p, size, p, size]
    made: Tensor = torch.stack([parts[:, at, :, at] for at in range(per_group)], dim=1).flatten(0, 1)
    return made


def main_directions(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squares along directions, largest first, and the directions, in float64 [n, c], [n, c, c]."""
    squares, directions = torch.linalg.eigh(moments.double())
    return squares.flip(1), directions.flip(2)


def places(moments: Tensor) -> Tensor:
    """Return where each channel comes in the order of how far it lies along its group's main direction [n, c].

    Numbers mostly lie along one direction: channels that are next to each other in this order have like means.

    Args:
        moments: of groups of channels [n, c, c].
    """
    main = main_directions(moments)[1][..., 0]
    main = (
        main * main.gather(1, main.abs().argmax(dim=1, keepdim=True)).sign()
    )  # eigenvectors have no sign of their own
    found: Tensor = main.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return found


def _quarter(moments: Tensor) -> float:
    values = torch.linalg.eigvalsh(moments.double())
    return float(values[:, -(values.shape[1] // 4) :].sum() / values.sum())
