"""`kvbench train`: train an embedded model, or blocks for one, by a recipe, and say in a card what it can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from kvbench import train, train_crossings
from kvbench.configuration.errors import ConfigError, hint
from kvbench.crossing_card import write_card as write_crossing_card
from kvbench.model_card import write_card
from kvbench.models.spec import FAMILY
from kvbench.uptraining import recipe_of

_USAGE = "kvbench train takes family=, out=, threads= and device="
_CONVERTS = {"from", "align", "share"}
_ALIGNED = ("none", "procrustes")


def main(settings: Sequence[str]) -> None:
    """Train a model, or go on where training was interrupted.

    Args:
        settings: family= the name of a recipe, out= the folder to write (default: runs/family/<name>), threads= of
            the CPU (default: 2), device= cpu or cuda (default: cpu). Where it begins as a shipped member with more
            KV heads: from= its name, align= none or procrustes, share= of its training's steps.

    Raises:
        ConfigError: for anything else.
    """
    given = dict(text.split("=", 1) for text in settings if "=" in text)
    unknown = given.keys() - {"family", "out", "threads", "device"} - _CONVERTS
    if len(given) != len(settings) or unknown or "family" not in given:
        raise ConfigError(
            f"{_USAGE}, once each, and from=, align= and share= together; got {' '.join(settings) or 'nothing'}."
        )
    name, threads, recipes = given["family"], given.get("threads", "2"), train.members()
    known = [*recipes, *train_crossings.members()]
    if name not in known:
        raise ConfigError(f"family={name} has no recipe. {hint(name, known, label='Families')}")
    if not threads.isdecimal() or int(threads) < 1:
        raise ConfigError(f"threads={threads} must be a number of at least 1.")
    device = given.get("device", "cpu")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(f"device={device} is not there to train on; set device=cpu (or cuda).")
    recipe, default = recipes.get(name), name
    if _CONVERTS & given.keys():
        recipe, default = _uptraining(given, recipes)
    out = Path(given.get("out") or f"runs/family/{default}")
    if recipe is None:
        train_crossings.run(name, out, int(threads), device)
        write_crossing_card(out)
        return
    _check_same(recipe, out)
    train.run(recipe, out, int(threads), device)
    write_card(out)


def _uptraining(given: Mapping[str, str], recipes: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the recipe of a member that begins as another one, and what to call it."""
    if _CONVERTS - given.keys():
        lacking = " and ".join(f"{key}=" for key in sorted(_CONVERTS - given.keys()))
        raise ConfigError(f"from=, align= and share= go together; give {lacking} as well.")
    source, align, name = given["from"], given["align"], given["family"]
    shipped = sorted({card.parent.name for card in FAMILY.glob("*/card.json")} & recipes.keys())
    if source not in shipped:
        raise ConfigError(f"from={source} is not shipped. {hint(source, shipped, label='Shipped')}")
    if align not in _ALIGNED:
        raise ConfigError(f"align={align} must be {' or '.join(_ALIGNED)}.")
    share = _number(given["share"])
    if share is None or not 0 <= share <= 1:
        raise ConfigError(f"share={given['share']} must be a number from 0 to 1.")
    heads = {member: _heads(recipe) for member, recipe in recipes.items() if member != "tiny"}
    fewer = [n for n, count in heads.items() if 0 < count < heads[source] and heads[source] % count == 0]
    if name not in fewer:
        raise ConfigError(
            f"family={name} cannot begin as {source}: it must differ in having fewer KV heads that share those evenly. "
            f"{hint(name, fewer, label='Families')}"
        )
    made = recipe_of(source, recipes, heads[name], align=align, share=share)
    return made, f"{name}_from_{source}_{align}_{share:g}"


def _heads(recipe: Any) -> int:
    """Return the KV heads of a member that has nothing else of its own but a width, or 0."""
    is_plain = "model_type" not in recipe.model and "sharing_layers" not in recipe.model
    return int(recipe.model.num_key_value_heads) if is_plain else 0


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _check_same(recipe: Any, out: Path) -> None:
    """Refuse to go on in a folder with what another recipe left."""
    file = out / "recipe.yaml"
    if file.is_file() and OmegaConf.load(file) != recipe:
        raise ConfigError(f"out={out} holds what another recipe left; choose another folder.")
