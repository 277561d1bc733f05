"""How large each channel that enters a block's linear layers gets, measured once by `kvbench calibrate smooth`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvbench.folders import cache_folder
from kvbench.strategies.budget.scores import SHIPPED, command, fingerprint
from kvbench.types import ModelView

KIND = "smooth"


@dataclass(frozen=True, kw_only=True)
class ChannelMaxima:
    """The largest magnitude of each channel behind each norm.

    Args:
        model: name of the model.
        revision: commit, folder or seed of its weights.
        weights: what `fingerprint` makes of them.
        seed: of random ids, where there is no text.
        samples: texts they were seen in.
        tokens: per sample.
        maxima: per norm, in the order of the model's norms, per channel.
    """

    model: str
    revision: str
    weights: str
    seed: int
    samples: int
    tokens: int
    maxima: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        """Refuse what are no magnitudes."""
        values = [value for row in self.maxima for value in row]
        if not values or not all(math.isfinite(value) and value >= 0 for value in values):
            raise ValueError("channel maxima must be numbers of at least 0.")

    @property
    def file_name(self) -> str:
        """What their file is called."""
        model = "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in self.model)
        return f"channel_maxima_{model}_{self.weights}.json"

    def write(self, file: Path) -> None:
        """Write them as json, a line per norm."""
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**asdict(self), "maxima": []}, indent=1).removesuffix("[]\n}")
        rows = ",\n".join(f"  {json.dumps(row)}" for row in self.maxima)
        file.write_text(f"{text}[\n{rows}\n ]\n}}\n", encoding="utf-8")

    def drawn(self) -> list[str]:
        """Return one line per norm."""
        return [f"norm {at:3} largest {max(row):10.3f} smallest {min(row):10.3f}" for at, row in enumerate(self.maxima)]


def find(where: str, view: ModelView) -> ChannelMaxima | None:
    """Return the maxima of a model, or None for a model without weights.

    Args:
        where: file, or folder of files; "" for the cache folder and what is shipped.
        view: of the model.

    Raises:
        ValueError: if there are none, with the command that makes them, or if they are another model's.
    """
    weights = fingerprint(view)
    if weights is None:
        return None
    if where and not Path(where).is_dir():
        return _checked(Path(where), weights, view)
    for folder in [Path(where)] if where else [cache_folder(), SHIPPED]:
        files = sorted(folder.glob(f"channel_maxima_*_{weights}.json"))
        if files:
            return _checked(files[-1], weights, view)
    raise ValueError(
        f"the channels of this model have no maxima in {where or cache_folder()}. Run once: {command(KIND, view)}"
    )


def _checked(file: Path, weights: str, view: ModelView) -> ChannelMaxima:
    found = _read(file, view)
    if found.weights != weights:
        raise ValueError(
            f"{file} was made for other weights: {found.model} ({found.weights}), this model is {weights}. "
            f"Run: {command(KIND, view)}"
        )
    want, got = [norm.width for norm in view.norms], [len(row) for row in found.maxima]
    if got != want:
        raise ValueError(
            f"{file} has maxima for {len(got)} norms of widths {sorted(set(got))}, this model has {len(want)} of "
            f"{sorted(set(want))}. Run: {command(KIND, view)}"
        )
    return found


def _read(file: Path, view: ModelView) -> ChannelMaxima:
    try:
        read: Any = json.loads(file.read_text(encoding="utf-8"))
        maxima = tuple(tuple(map(float, row)) for row in read.pop("maxima"))
        return ChannelMaxima(maxima=maxima, **read)
    except OSError as error:
        raise ValueError(
            f"strategy.transform.maxima={file} cannot be read: {error.strerror}. Make it with: "
            f"{command(KIND, view)} --out {file}"
        ) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{file} holds no channel maxima ({error}). Make it again with: {command(KIND, view)} --out {file}"
        ) from error
