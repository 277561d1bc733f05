"""Scores of a model's heads, measured once by `kvbench calibrate` and kept in a file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from kvbench.folders import cache_folder
from kvbench.types import ModelView

SHIPPED = Path(__file__).parents[2] / "models" / "tiny"  # the embedded model's scores come with it
SAMPLED = 1024  # weights of each layer that tell a model from others

Table = tuple[tuple[float, ...], ...]  # per layer, per KV head


@dataclass(frozen=True, kw_only=True)
class HeadScores:
    """How much each KV head of a model does of something.

    Args:
        kind: what was measured.
        model: name of the model.
        revision: commit, folder or seed of its weights.
        weights: what `fingerprint` makes of them.
        seed: of the samples.
        samples: texts the scores are means over.
        tokens: per sample.
        scores: by name, per layer and KV head, between 0 and 1.
    """

    kind: str
    model: str
    revision: str
    weights: str
    seed: int
    samples: int
    tokens: int
    scores: Mapping[str, Table]

    def __post_init__(self) -> None:
        """Refuse what are no scores."""
        for name, table in self.scores.items():
            values = [value for layer in table for value in layer]
            if not values or not all(math.isfinite(value) and 0 <= value <= 1 for value in values):
                raise ValueError(f"head scores {name!r} must be numbers between 0 and 1.")

    @property
    def file_name(self) -> str:
        """What their file is called."""
        model = "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in self.model)
        return f"head_scores_{self.kind}_{model}_{self.weights}.json"

    def write(self, file: Path) -> None:
        """Write them as json."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def fingerprint(view: ModelView) -> str | None:
    """Return what tells the weights of a model from others', or None where they are not loaded.

    Weights count as bfloat16, so that it does not matter in which dtype a model was loaded.
    """
    digest = hashlib.sha256()
    for layer in view.layers:
        digest.update(f"{layer.query_heads} {layer.kv_heads} {layer.key_dim} {layer.value_dim}\n".encode())
    outputs = [layer.output for layer in view.layers if layer.output is not None]
    if any(output.is_meta for output in outputs):
        return None
    if outputs:
        values = torch.cat([output.flatten()[:: max(1, output.numel() // SAMPLED)] for output in outputs])
        digest.update(values.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def find(kind: str, where: str, view: ModelView) -> HeadScores:
    """Return the scores of a model.

    Args:
        kind: what was measured.
        where: file, or folder of files; "" for the cache folder and what is shipped.
        view: of the model.

    Raises:
        ValueError: if there are none, with the command that makes them, or if they are another model's.
    """
    weights = fingerprint(view)
    if weights is None:
        return _any(kind, view)
    if where and not Path(where).is_dir():
        return _checked(_read(Path(where), kind, view), kind, weights, view, Path(where))
    for folder in [Path(where)] if where else [cache_folder(), SHIPPED]:
        files = sorted(folder.glob(f"head_scores_{kind}_*_{weights}.json"))
        if files:
            return _checked(_read(files[-1], kind, view), kind, weights, view, files[-1])
    raise ValueError(
        f"the heads of this model have no {kind} scores in {where or cache_folder()}. Run once: {command(kind, view)}"
    )


def command(kind: str, view: ModelView) -> str:
    """Return what to type to get the scores of a model."""
    return f"kvbench calibrate {kind} {view.asked or 'model.path=<folder of the checkpoint>'}"


def _read(file: Path, kind: str, view: ModelView) -> HeadScores:
    try:
        read: Any = json.loads(file.read_text(encoding="utf-8"))
        tables = {str(name): tuple(map(_numbers, table)) for name, table in read.pop("scores").items()}
        return HeadScores(scores=tables, **read)
    except OSError as error:
        raise ValueError(
            f"strategy.budget.scores={file} cannot be read: {error.strerror}. Make it with: "
            f"{command(kind, view)} --out {file}"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{file} holds no head scores ({error}). Make it again with: {command(kind, view)} --out {file}"
        ) from error


def _numbers(values: Sequence[Any]) -> tuple[float, ...]:
    return tuple(map(float, values))


def _checked(found: HeadScores, kind: str, weights: str, view: ModelView, file: Path) -> HeadScores:
    if found.kind != kind:
        raise ValueError(f"{file} holds {found.kind} scores; {kind} scores are needed: {command(kind, view)}")
    want = [layer.kv_heads for layer in view.layers]
    for name, table in found.scores.items():
        got = [len(layer) for layer in table]
        if got != want:
            raise ValueError(
                f"{file} was made for another model: {name!r} has KV heads {got} per layer, this model has {want}. "
                f"Run: {command(kind, view)}"
            )
    if found.weights != weights:
        raise ValueError(
            f"{file} was made for other weights: {found.model} ({found.weights}), this model is {weights}. "
            f"Run: {command(kind, view)}"
        )
    return found


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
