"""What `kvbench calibrate` finds on the tests' random models, in folders that go with the process."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from kvbench.calibration import watching
from kvbench.cli.calibrate import KINDS
from kvbench.models.load import Loaded
from kvbench.models.view import view_of
from kvbench.workloads.source import TokenSource
from tests.support.models import MAIN, NAMES, VOCABULARY, attention, model

SOURCE = TokenSource(prefix=(), text=(), vocabulary=VOCABULARY, seed=0, name="random ids", tasks=None)
HOW = {"smooth": (MAIN, 2, 40), "codebooks": (NAMES, 2, 60), "moments": (MAIN, 4, 40)}  # models, samples, tokens


@functools.cache
def folder(kind: str) -> Path:
    """Return a folder with what is measured of every model that needs it."""
    path, (names, samples, tokens) = temporary(kind), HOW[kind]
    for name in names:
        found = measured(kind, model(name), samples=samples, tokens=tokens)
        found.write(path / found.file_name(kind))
    return path


def temporary(kind: str) -> Path:
    """Return a folder that goes with the process."""
    path = Path(tempfile.mkdtemp(prefix=f"kvbench-{kind}-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def measured(kind: str, network: PreTrainedModel, *, samples: int, tokens: int) -> Any:
    """Return what is measured of a model over random ids."""
    loaded = Loaded(model=network, tokenizer=None, view=view_of(network), weights="random", revision="seed-0")
    with attention(network, watching.ATTENTION):
        return KINDS[kind]("small", loaded, SOURCE, samples=samples, tokens=tokens, report=lambda share: None)
