"""What `kvbench calibrate` measured once on a model, in files that are found by the model's weights."""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar, runtime_checkable

import torch
from safetensors import SafetensorError

from kvbench.folders import cache_folder
from kvbench.types import ModelView

SHIPPED = Path(__file__).parent / "models" / "tiny"  # what was measured on the embedded model comes with it
SAMPLED = 1024  # weights of each layer that tell a model from others


@dataclass(frozen=True, kw_only=True)
class Calibrated(ABC):
    """What was measured, and on what.

    Args:
        model: name of the model.
        revision: commit, folder or seed of its weights.
        weights: what `fingerprint` makes of them.
        seed: of the samples, or of random ids where there is no text.
        samples: texts that were read.
        tokens: per sample.
    """

    holds: ClassVar[str]  # what files of this kind hold, for their names and for messages
    lacks: ClassVar[str]  # what is said of a model that has none of a kind
    key: ClassVar[str]  # of the configuration, that names a file or a folder
    suffix: ClassVar[str] = ".json"  # of files

    model: str
    revision: str
    weights: str
    seed: int
    samples: int
    tokens: int

    @classmethod
    def read(cls, file: Path) -> Self:
        """Return what a file holds."""
        return cls.parsed(json.loads(file.read_text(encoding="utf-8")))

    @classmethod
    @abstractmethod
    def parsed(cls, read: dict[str, Any]) -> Self:
        """Return what was read from a file."""

    @abstractmethod
    def misfit(self, kind: str, view: ModelView) -> str | None:
        """Return why this is not of that kind, or not for a model of these shapes, and the command for it; or None."""

    @abstractmethod
    def drawn(self) -> list[str]:
        """Return lines that show it."""

    @classmethod
    def stem(cls, kind: str) -> str:
        """Return what names of files of a kind begin with."""
        return cls.holds.replace(" ", "_")

    def file_name(self, kind: str) -> str:
        """Return what its file is called."""
        model = "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in self.model)
        return f"{self.stem(kind)}_{model}_{self.weights}{self.suffix}"

    def write(self, file: Path) -> None:
        """Write it as json, each innermost list on a line of its own."""
        file.parent.mkdir(parents=True, exist_ok=True)
        text = re.sub(r"\[\n[^][]*]", lambda row: json.dumps(json.loads(row[0])), json.dumps(asdict(self), indent=1))
        file.write_text(text + "\n", encoding="utf-8")


@runtime_checkable
class NeedsCalibration(Protocol):
    """A part of a strategy that reads what was measured."""

    @property
    def calibration(self) -> str:
        """What `kvbench calibrate` calls it."""


Found = TypeVar("Found", bound=Calibrated)


def find(what: type[Found], where: str, view: ModelView, *, kind: str) -> Found | None:
    """Return what was measured on a model, or None for a model without weights.

    Args:
        what: is asked for.
        where: file, or folder of files; "" for the cache folder and what is shipped.
        view: of the model.
        kind: as `kvbench calibrate` calls it.

    Raises:
        ValueError: if there is nothing, with the command that makes it, or if it is another model's.
    """
    weights = fingerprint(view)
    if weights is None:
        return None
    if where and not Path(where).is_dir():
        return _checked(_read(what, Path(where), kind, view), kind, weights, view, Path(where))
    for folder in [Path(where)] if where else [cache_folder(), SHIPPED]:
        files = sorted(folder.glob(f"{what.stem(kind)}_*_{weights}{what.suffix}"))
        if files:
            return _checked(_read(what, files[-1], kind, view), kind, weights, view, files[-1])
    lacks = what.lacks.format(kind=kind)
    raise ValueError(f"{lacks} in {where or cache_folder()}. Run once: {command(kind, view)}")


def _read(what: type[Found], file: Path, kind: str, view: ModelView) -> Found:
    try:
        return what.read(file)
    except OSError as error:
        raise ValueError(
            f"{what.key}={file} cannot be read: {error.strerror}. Make it with: {command(kind, view)} --out {file}"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise ValueError(
            f"{file} holds no {what.holds} ({error}). Make it again with: {command(kind, view)} --out {file}"
        ) from error


def _checked(found: Found, kind: str, weights: str, view: ModelView, file: Path) -> Found:
    misfit = found.misfit(kind, view)
    if misfit is not None:
        raise ValueError(f"{file} {misfit}")
    if found.weights != weights:
        raise ValueError(
            f"{file} was made for other weights: {found.model} ({found.weights}), this model is {weights}. "
            f"Run: {command(kind, view)}"
        )
    return found


def command(kind: str, view: ModelView) -> str:
    """Return what to type to have a model measured."""
    return f"kvbench calibrate {kind} {view.asked or 'model.path=<folder of the checkpoint>'}"


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
