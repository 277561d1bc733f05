"""The prompt is encoded once and forgotten; blocks between the layers read its encoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from kvbench.calibrated import fingerprint
from kvbench.models.crossing import Crossings, Places, connect, with_context
from kvbench.models.spec import FAMILY
from kvbench.models.view import attentions
from kvbench.strategies.transform.base import Transform, with_modules
from kvbench.types import ModelView

FILE = "blocks.safetensors"
SEED = 0  # of weights that nobody has trained


@dataclass(frozen=True, kw_only=True)
class Crossed(Transform):
    """Layers read what follows the prompt; of the prompt, blocks with cross-attention read what it was encoded to.

    Source: Monteiro et al. (XC-Cache), arXiv:2404.15420, sec. 3.1: the decoder itself encodes (XC-Llama).

    Args:
        compression: how many times fewer bytes of a prompt are asked for.
        mode: "kv" has so many times fewer blocks than layers, "hidden" encodes a token in so many times fewer numbers
            than its keys and values have, "auto" takes the latter where one block alone would be too much.
        weights: folder of trained blocks; "" for those that come with kvbench, or untrained ones where none do.
    """

    is_exact: ClassVar[bool] = False
    changes_heads: ClassVar[bool] = True

    compression: float
    mode: Literal["auto", "kv", "hidden"]
    weights: str

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if self.compression < 1:
            raise ValueError(f"strategy.transform.compression must be at least 1; got {self.compression}.")
        if self.mode not in ("auto", "kv", "hidden"):
            raise ValueError(f"strategy.transform.mode must be auto, kv or hidden; got {self.mode!r}.")

    def unsupported(self, view: ModelView) -> str | None:
        """Return why a model can have no such blocks, or None."""
        if view.keeps_context:
            return None
        if any(layer.window or layer.donor is not None or layer.values_are_keys for layer in view.layers):
            return (
                "strategy/transform=xc needs layers that keep keys and values of their own and see everything, which "
                "this model has not; choose another model"
            )
        try:
            self.trained(view)
        except ValueError as error:
            return str(error)
        return None

    def sizes(self, view: ModelView) -> tuple[int, int]:
        """Return how many blocks there are, and how many numbers encode a token."""
        layers, hidden = len(view.layers), view.sizes.hidden
        blocks = max(1, round(layers / self.compression))
        is_shallow = self.mode == "auto" and layers < self.compression
        if self.mode == "kv" or not (is_shallow or self.mode == "hidden"):
            return blocks, hidden
        numbers = sum(layer.kv_heads * layer.stored_dim for layer in view.layers)
        return blocks, min(hidden, max(1, round(numbers / self.compression)))

    def shapes(self, view: ModelView) -> ModelView:
        """Return the view with layers that forget the prompt, and with those of the blocks."""
        return with_context(view, self.sizes(view)[0])

    def trained(self, view: ModelView) -> Path | None:
        """Return the file of blocks that were trained for a model, or None where nobody has.

        Raises:
            ValueError: if the folder that is named holds none for it.
        """
        model, (blocks, width) = fingerprint(view), self.sizes(view)
        if model is None:
            return None
        want = {"weights": model, "blocks": str(blocks), "width": str(width)}
        if not self.weights:
            shipped = sorted(FAMILY.glob(f"*/{FILE}"))
            return next((file for file in shipped if about(file).items() >= want.items()), None)
        file = Path(self.weights) / FILE
        try:
            got = about(file)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"strategy.transform.weights={self.weights} holds no blocks ({error}). Make them with: {_command()}"
            ) from error
        wrong = {name: got.get(name, "nothing") for name, value in want.items() if got.get(name) != value}
        if wrong:
            raise ValueError(
                f"strategy.transform.weights={self.weights} holds blocks with {_listed(wrong)}, and here "
                f"{_listed({name: want[name] for name in wrong})} are needed. Make them with: {_command()}"
            )
        return file

    def changed(self, model: nn.Module, view: ModelView) -> nn.Module:
        """Return a model with blocks, trained ones where there are any."""
        (blocks, width), file = self.sizes(view), self.trained(view)
        if file is None:
            crossings = Crossings(view, Places.spread(blocks, len(view.layers)), width)
            crossings.draw(SEED)
        else:
            crossings = Crossings(view, places_in(about(file)), width)
            crossings.load_state_dict(load_file(file))
            crossings.is_trained = True
        crossings.requires_grad_(False).eval().to(device=view.device, dtype=view.dtype)
        return with_crossings(model, view, crossings)


def with_crossings(model: nn.Module, view: ModelView, crossings: Crossings) -> nn.Module:
    """Return a model with blocks between its layers; all else is shared with the one given."""
    names = [name.rpartition(".")[0] for name, _ in attentions(model, view)]
    made = with_modules(model, {name: with_modules(model.get_submodule(name), {}) for name in names})
    connect(made, [made.get_submodule(name) for name in names], crossings)
    return made


def about(file: Path) -> dict[str, str]:
    """Return what a file says of the blocks it holds."""
    with safe_open(file, framework="pt") as opened:
        return opened.metadata() or {}


def said_of(crossings: Crossings, view: ModelView) -> dict[str, str]:
    """Return what a file says of blocks."""
    places = crossings.places
    return {
        "weights": str(fingerprint(view)),
        "blocks": str(len(places.behind)),
        "width": str(crossings.width),
        "behind": " ".join(map(str, places.behind)),
        "encoded": str(places.encoded),
    }


def places_in(said: Mapping[str, str]) -> Places:
    """Return where a file says that its blocks stand."""
    return Places(behind=tuple(map(int, said["behind"].split())), encoded=int(said["encoded"]))


def _listed(said: dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in said.items())


def _command() -> str:
    return "kvbench train family=xc10 (or xc20)"
