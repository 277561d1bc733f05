"""Files of codebooks of the tests' random models, in a folder that goes with the process."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from transformers import PreTrainedModel

from kvbench.cache.codecs.codebooks import Codebooks
from kvbench.calibration import watching
from kvbench.calibration.codebooks import codebooks
from kvbench.models.load import Loaded
from kvbench.models.view import view_of
from tests.support.channel_maxima import SOURCE
from tests.support.models import NAMES, attention, model


@functools.cache
def folder() -> Path:
    """Return a folder with codebooks of every model."""
    path = Path(tempfile.mkdtemp(prefix="kvbench-codebooks-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    for name in NAMES:
        found = fitted(model(name), samples=2, tokens=60)
        found.write(path / found.file_name)
    return path


def fitted(network: PreTrainedModel, *, samples: int, tokens: int) -> Codebooks:
    """Return codebooks of a model from random ids."""
    loaded = Loaded(model=network, tokenizer=None, view=view_of(network), weights="random", revision="seed-0")
    with attention(network, watching.ATTENTION):
        return codebooks("small", loaded, SOURCE, samples=samples, tokens=tokens, report=lambda share: None)
