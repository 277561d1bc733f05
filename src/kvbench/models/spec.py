"""What a model configuration says; loads nothing."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

TINY = Path(__file__).parent / "tiny"  # with the tokenizer that the family shares
FAMILY = Path(__file__).parent / "family"


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which model to run, with which weights, where.

    Args:
        name: what rows call it.
        path: local folder of a checkpoint, or "" for none; it wins over everything else.
        weights: "auto" takes pretrained weights if they are cached or reachable, else random ones.
        hub_id: repository of the pretrained weights, or "" where there is none.
        revision: branch, tag or commit of that repository.
        dtype: of weights, keys and values.
        device: "auto" takes cuda, then mps, then cpu.
        device_map: how transformers spreads the layers of a checkpoint over all GPUs; "none" for one device.
        architecture: transformers config keys, model_type among them; empty for embedded weights and for `path`.
        matched: names of the models of the same size with another architecture, by kind.
    """

    name: str
    path: str
    weights: Literal["auto", "pretrained", "random", "embedded"]
    hub_id: str
    revision: str
    dtype: Literal["float32", "bfloat16", "float16"]
    device: Literal["auto", "cpu", "cuda", "mps"]
    device_map: Literal["none", "auto", "balanced", "balanced_low_0", "sequential"]
    architecture: Mapping[str, Any]
    matched: Mapping[str, str]

    def __post_init__(self) -> None:
        """Refuse what cannot be loaded, before anything is."""
        if self.device_map != "none" and self.device != "auto":
            raise ValueError(
                f"model.device_map={self.device_map} takes every GPU there is, and model.device={self.device} asks for "
                f"one device; leave one of them out."
            )
        if self.device_map != "none" and self.weights == "random" and not self.path:
            raise ValueError(
                f"model.device_map={self.device_map} spreads the weights of a checkpoint, and random ones are made on "
                f"one device; set model.path= or model.weights=pretrained, or leave model.device_map out."
            )
        if self.path and not Path(self.path).is_dir():
            raise ValueError(f"model.path={self.path} is no folder; it must hold a checkpoint in safetensors form.")
        if self.path and not (Path(self.path) / "config.json").is_file():
            raise ValueError(f"model.path={self.path} has no config.json; it must hold a transformers checkpoint.")
        if self.path:
            return
        if self.weights == "embedded" and (self.architecture or not (self._embedded / "config.json").is_file()):
            raise ValueError("model.weights=embedded is for model=tiny and its family; use auto, pretrained or random.")
        if self.weights == "pretrained" and not self.hub_id:
            raise ValueError(f"model={self.name} has no pretrained weights; set model.weights=random or model.path=.")
        if self.weights in ("auto", "random") and not self.architecture:
            raise ValueError(f"model={self.name} has no architecture to fill with random weights; set model.path=.")

    def unavailable(self) -> str | None:
        """Return what has to be installed first and how, or None."""
        if self.device_map == "none" or importlib.util.find_spec("accelerate") is not None:
            return None
        return (
            f"model.device_map={self.device_map} needs accelerate, which is not installed: "
            f"pip install '.[accelerate]', or leave model.device_map out"
        )

    @property
    def title(self) -> str:
        """What rows and messages call it: the folder's name where it is one of the user's own."""
        return Path(self.path).resolve().name if self.path else self.name

    @property
    def known_as(self) -> str:
        """Name by which others know these weights; "" where they are of a folder, or random."""
        if self.path or self.weights == "random":
            return ""
        return self.name if self.weights == "embedded" else self.hub_id

    @property
    def folder(self) -> Path | None:
        """The local folder the weights come from, or None."""
        if self.path:
            return Path(self.path)
        return self._embedded if self.weights == "embedded" else None

    @property
    def _embedded(self) -> Path:
        return TINY if self.name == TINY.name else FAMILY / self.name.removeprefix(f"{TINY.name}-")

    @property
    def max_positions(self) -> int | None:
        """The longest sequence the model can read, where that is known before loading."""
        known: Mapping[str, Any] = self.architecture
        if self.folder is not None:
            known = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        found = known.get("max_position_embeddings", known.get("n_positions"))
        return None if found is None else int(found)
