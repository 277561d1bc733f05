"""What all tests share: one thread, so that runs side by side do not disturb each other, and Triton's interpreter.

What costs time and shows nothing is off: a graph for gradients nobody asks for (a test that trains turns it on),
looking for garbage among the modules that were imported, and a third of each composition.
"""

from __future__ import annotations

import gc
import os
from typing import Any

import torch
from hydra._internal import defaults_list

gc.disable()  # until everything is imported
torch.set_num_threads(1)
torch.set_grad_enabled(False)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # looked at once, when Triton is imported

all_choices = defaults_list._create_interpolation_map


def _choices_if_asked(overrides: Any, defaults: list[Any], *more: Any) -> Any:
    """Return the choices made so far, for defaults that are named by others: Hydra makes them for every file."""
    asked = any(default.is_interpolation() for default in defaults if not default.is_self())
    return all_choices(overrides, defaults, *more) if asked else None


defaults_list._create_interpolation_map = _choices_if_asked  # type: ignore[assignment]


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()
