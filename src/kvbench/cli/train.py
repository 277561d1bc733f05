"""`kvbench train`: train one of the embedded models by its recipe, and say in a card what it can do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from kvbench.configuration.errors import ConfigError, hint
from kvbench.model_card import write_card
from kvbench.train import members, run

_USAGE = "kvbench train takes family=, out=, threads= and device="


def main(settings: Sequence[str]) -> None:
    """Train a model, or go on where training was interrupted.

    Args:
        settings: family= the name of a recipe, out= the folder to write (default: runs/family/<name>), threads= of
            the CPU (default: 2), device= cpu or cuda (default: cpu).

    Raises:
        ConfigError: for anything else.
    """
    given = dict(text.split("=", 1) for text in settings if "=" in text)
    if len(given) != len(settings) or given.keys() - {"family", "out", "threads", "device"} or "family" not in given:
        raise ConfigError(f"{_USAGE}, once each; got {' '.join(settings) or 'nothing'}.")
    name, threads, known = given["family"], given.get("threads", "2"), list(members())
    if name not in known:
        raise ConfigError(f"family={name} has no recipe. {hint(name, known, label='Families')}")
    if not threads.isdecimal() or int(threads) < 1:
        raise ConfigError(f"threads={threads} must be a number of at least 1.")
    device = given.get("device", "cpu")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(f"device={device} is not there to train on; set device=cpu (or cuda).")
    out = Path(given.get("out") or f"runs/family/{name}")
    run(name, out, int(threads), device)
    write_card(out)
