"""Files of channel maxima of the tests' random models, in a folder that goes with the process."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from transformers import PreTrainedModel

from kvbench.calibration import watching
from kvbench.calibration.maxima import channel_maxima
from kvbench.models.load import Loaded
from kvbench.models.view import view_of
from kvbench.strategies.transform.maxima import ChannelMaxima
from kvbench.workloads.source import TokenSource
from tests.support.models import MAIN, VOCABULARY, attention, model

SOURCE = TokenSource(prefix=(), text=(), vocabulary=VOCABULARY, seed=0, name="random ids", tasks=None)


@functools.cache
def folder() -> Path:
    """Return a folder with the maxima of the main models."""
    path = Path(tempfile.mkdtemp(prefix="kvbench-maxima-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    for name in MAIN:
        found = measured(model(name), samples=2, tokens=40)
        found.write(path / found.file_name)
    return path


def measured(network: PreTrainedModel, *, samples: int, tokens: int) -> ChannelMaxima:
    """Return the maxima of a model over random ids."""
    loaded = Loaded(model=network, tokenizer=None, view=view_of(network), weights="random", revision="seed-0")
    with attention(network, watching.ATTENTION):
        return channel_maxima("small", loaded, SOURCE, samples=samples, tokens=tokens, report=lambda share: None)
